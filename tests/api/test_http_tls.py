"""TLS on the REST port, with and without client certificates."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import httpx
import pytest
from fakes import make_service
from http_harness import LiveServer, live_server

from server.http_api import create_app
from server.http_server import HttpServer
from server.settings import SettingsError

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make certificates")


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with ca, server and client certificates and keys."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*args: str) -> None:
        subprocess.run(["openssl", *args], cwd=folder, check=True, capture_output=True)

    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(*new, "-x509", "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    (folder / "san").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "client"):
        openssl(*new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signing = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "san")
        openssl("x509", "-req", "-days", "2", "-in", f"{name}.csr", *signing, "-out", f"{name}.pem")
    return folder


async def readyz(server: LiveServer, pems: Path, client: str | None = None) -> int:
    """Status of /readyz over TLS."""
    context = ssl.create_default_context(cafile=str(pems / "ca.pem"))
    if client is not None:
        context.load_cert_chain(pems / f"{client}.pem", pems / f"{client}.key")
    async with httpx.AsyncClient(verify=context) as http:
        return (await http.get(f"https://127.0.0.1:{server.port}/readyz")).status_code


async def test_one_certificate_serves_https(pems: Path):
    service = make_service(tls_cert=pems / "server.pem", tls_key=pems / "server.key")
    async with live_server(service) as server:
        assert await readyz(server, pems) == 200


@pytest.mark.parametrize(
    "files", [{"tls_cert": "nowhere.pem"}, {"tls_cert": "client.pem"}, {"tls_key": "san"}]
)
async def test_files_that_do_not_fit_are_one_clear_line(pems: Path, files):
    names = {"tls_cert": "server.pem", "tls_key": "server.key", **files}
    service = make_service(**{flag: pems / name for flag, name in names.items()})
    server = HttpServer(create_app(service), service.settings, 0)
    with pytest.raises(SettingsError, match="--tls-cert"):
        await server.start()
    await server.stop()


async def test_a_client_authority_asks_for_certificates(pems: Path):
    files = {
        "tls_cert": pems / "server.pem",
        "tls_key": pems / "server.key",
        "tls_client_ca": pems / "ca.pem",
    }
    async with live_server(make_service(**files)) as server:
        assert await readyz(server, pems, "client") == 200
        with pytest.raises(httpx.TransportError):
            await readyz(server, pems)
