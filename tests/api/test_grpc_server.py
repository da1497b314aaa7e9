"""What balancers and operators see of the gRPC server: health, reflection, TLS, connections, the port."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fakes import FakeEngine, make_service, make_settings
from google.protobuf import descriptor_pb2
from grpc_harness import Harness, request, serving
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from server import grpc_api
from server.grpc_api import GrpcServer
from server.pb.speech_pb2_grpc import SpeechChatStub
from server.proto_gen import differing, generate
from server.settings import SettingsError
from server.types import EngineState

SERVICE = "wavllm.v1.SpeechChat"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def check(server: Harness, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(server.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
    return int(answer.status)


def watch(server: Harness, service: str = "") -> AsyncIterator[Any]:
    stub = health_pb2_grpc.HealthStub(server.channel)
    return aiter(stub.Watch(health_pb2.HealthCheckRequest(service=service)))


async def next_status(watching: AsyncIterator[Any]) -> int:
    return int((await asyncio.wait_for(anext(watching), 3.0)).status)


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_follows_loading_serving_and_draining(service: str) -> None:
    async with serving(start=False, api_key=("secret",)) as server:
        watching = watch(server, service)
        assert await check(server, service) == await next_status(watching) == NOT_SERVING
        await server.service.start()
        server.server.set_serving(True)
        assert await check(server, service) == await next_status(watching) == SERVING
        server.service.drain()
        assert await check(server, service) == NOT_SERVING
        server.server.set_serving(False)
        assert await next_status(watching) == NOT_SERVING


async def test_health_sees_a_dead_engine_by_itself() -> None:
    engine = FakeEngine()
    async with serving(engine) as server:
        watching = watch(server)
        assert await next_status(watching) == SERVING
        engine.state = EngineState.FAILED
        assert await check(server) == NOT_SERVING
        assert await next_status(watching) == NOT_SERVING
        engine.state = EngineState.READY
        assert await next_status(watching) == SERVING


async def test_a_ready_service_is_not_serving_before_it_is_told_to() -> None:
    async with serving() as server:
        server.server.set_serving(False)
        assert await check(server) == NOT_SERVING


async def test_health_of_an_unknown_service() -> None:
    async with serving() as server:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await check(server, "wavllm.v1.Nobody")
        assert await next_status(watch(server, "wavllm.v1.Nobody")) == UNKNOWN
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_health_lists_every_service() -> None:
    async with serving() as server:
        stub = health_pb2_grpc.HealthStub(server.channel)
        answer = await stub.List(health_pb2.HealthListRequest())
    assert {name: each.status for name, each in answer.statuses.items()} == {"": SERVING, SERVICE: SERVING}


async def test_health_answers_while_the_queue_is_full() -> None:
    gate = asyncio.Event()
    async with serving(FakeEngine(gates={"start": gate}), max_queued_requests=1) as server:
        call = asyncio.ensure_future(server.stub.Chat(request()))
        while not server.service.ledger.num_waiting:
            await asyncio.sleep(0.001)
        seconds = []
        for _ in range(20):
            begin = time.monotonic()
            assert await check(server) == SERVING
            seconds.append(time.monotonic() - begin)
        assert sorted(seconds)[10] < 0.1
        gate.set()
        await call


async def test_stop_ends_watchers_and_does_not_wait_for_them() -> None:
    async with serving() as server:
        watching = watch(server)
        assert await next_status(watching) == SERVING
        await asyncio.wait_for(server.server.stop(30.0), 10.0)
        assert await next_status(watching) == NOT_SERVING
        with pytest.raises(StopAsyncIteration):
            await anext(watching)
        await server.server.stop(30.0)


async def test_stop_does_not_wait_for_an_open_reflection_stream() -> None:
    async with serving() as server:
        stream = reflection_pb2_grpc.ServerReflectionStub(server.channel).ServerReflectionInfo()
        await stream.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        await stream.read()
        await asyncio.wait_for(server.server.stop(30.0), 10.0)


async def reflect(server: Harness, **question: str) -> Any:
    stub = reflection_pb2_grpc.ServerReflectionStub(server.channel)
    questions = iter([reflection_pb2.ServerReflectionRequest(**question)])
    return await anext(aiter(stub.ServerReflectionInfo(questions)))


async def test_reflection_lists_the_services() -> None:
    async with serving(api_key=("secret",)) as server:
        answer = await reflect(server, list_services="")
    assert {service.name for service in answer.list_services_response.service} == {
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }


async def test_reflection_shows_unary_methods_as_unary() -> None:
    async with serving() as server:
        answer = await reflect(server, file_containing_symbol=SERVICE)
    (raw,) = answer.file_descriptor_response.file_descriptor_proto
    file = descriptor_pb2.FileDescriptorProto.FromString(raw)
    assert file.name == "wavllm/v1/speech.proto"
    streams = {
        method.name: (method.client_streaming, method.server_streaming) for method in file.service[0].method
    }
    assert streams == {
        "Chat": (False, False),
        "ChatStream": (False, True),
        "ChatUpload": (True, True),
        "GetModelInfo": (False, False),
    }


def test_committed_stubs_are_what_proto_says() -> None:
    pytest.importorskip("grpc_tools")
    assert differing(generate()) == []


async def test_a_taken_port_is_a_clear_error(capfd: pytest.CaptureFixture[str]) -> None:
    async with serving() as server:
        port = int(server.target.rpartition(":")[2])
        second = GrpcServer(make_service(), make_settings(grpc_port=port))
        with pytest.raises(SettingsError, match=rf"--grpc-port: cannot listen on 127.0.0.1:{port}"):
            await second.start()
        await second.stop(0.0)
        assert (await server.stub.Chat(request())).finish_reason == "stop"


async def test_a_stopped_server_frees_its_port() -> None:
    async with serving() as server:
        port = int(server.target.rpartition(":")[2])
        await server.server.stop(0.0)
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(("127.0.0.1", port))


async def answers_to_pings(server: Harness, count: int, interval_s: float) -> bytes:
    """What comes back on a bare HTTP/2 connection without calls that pings `count` times.

    gRPC's own client would slow down by itself, so the frames are written by hand.
    """
    reader, writer = await asyncio.open_connection(*server.target.split(":"))
    empty_settings = bytes(3) + b"\x04" + bytes(5)
    writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + empty_settings)
    answers = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        for number in range(count):
            await asyncio.sleep(interval_s)
            writer.write(b"\x00\x00\x08\x06" + bytes(5) + b"ping" + number.to_bytes(4))
            answers += await asyncio.wait_for(reader.read(1 << 16), interval_s)
    writer.close()
    return answers


async def test_keepalive_pings_are_tolerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1/50 of real time: a ping every 10 s becomes one every 0.2 s."""
    monkeypatch.setattr(grpc_api, "MIN_PING_INTERVAL_S", grpc_api.MIN_PING_INTERVAL_S / 50)
    async with serving() as server:
        answers = await answers_to_pings(server, 6, 0.2)
    assert answers.count(b"ping\0") >= 5  # the last answer may not have been waited for
    assert b"too_many_pings" not in answers


async def test_pings_much_too_often_end_the_connection() -> None:
    """Or else the test above proves nothing."""
    async with serving() as server:
        assert b"too_many_pings" in await answers_to_pings(server, 6, 0.05)


class Relay:
    """A TCP relay that counts connections."""

    def __init__(self, port: int) -> None:
        self.num_connections = 0
        self._port = port

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        there = await asyncio.open_connection("127.0.0.1", self._port)
        await asyncio.gather(self._copy(reader, there[1]), self._copy(there[0], writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()


async def test_old_connections_are_renewed_and_lose_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_api, "MAX_CONNECTION_AGE_S", 0.2)
    async with serving(FakeEngine(step_s=0.1)) as server:
        relay = Relay(int(server.target.rpartition(":")[2]))
        async with grpc.aio.insecure_channel(await relay.start()) as channel:
            for _ in range(3):  # each takes 0.4 s, so it outlives the connection's age
                answer = await SpeechChatStub(channel).Chat(request())
                assert answer.finish_reason == "stop"
        await relay.stop()
    assert relay.num_connections == 3


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an authority (ca), and server and client certificates for localhost from it."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command")
    directory = tmp_path_factory.mktemp("tls")
    new_key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(directory, "req", "-x509", *new_key, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.pem")
    for name in ("server", "client"):
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem")
        issuer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=DNS:localhost")
        openssl(directory, "req", "-x509", *new_key, "-subj", f"/CN={name}", *issuer, *files)
    return directory


def channel_credentials(directory: Path, client: str | None) -> grpc.ChannelCredentials:
    read = {path.name: path.read_bytes() for path in directory.iterdir()}
    if client is None:
        return grpc.ssl_channel_credentials(read["ca.pem"])
    return grpc.ssl_channel_credentials(read["ca.pem"], read[f"{client}.key"], read[f"{client}.pem"])


async def ask_over_tls(server: Harness, directory: Path, client: str | None = None) -> str:
    target = "localhost:" + server.target.rpartition(":")[2]
    async with grpc.aio.secure_channel(target, channel_credentials(directory, client)) as channel:
        answer = await SpeechChatStub(channel).Chat(request(), timeout=3)
    return str(answer.finish_reason)


async def test_tls(certificates: Path) -> None:
    files = {"tls_cert": certificates / "server.pem", "tls_key": certificates / "server.key"}
    async with serving(**files) as server:
        assert await ask_over_tls(server, certificates) == "stop"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await server.stub.Chat(request(), timeout=3)  # the harness's own channel is plain
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_client_authority_asks_clients_for_certificates(certificates: Path) -> None:
    files = {"tls_cert": certificates / "server.pem", "tls_key": certificates / "server.key"}
    async with serving(**files, tls_client_ca=certificates / "ca.pem") as server:
        assert await ask_over_tls(server, certificates, "client") == "stop"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask_over_tls(server, certificates)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"tls_cert": "absent.pem", "tls_key": "server.key"}, "--tls-cert: .*absent.pem: No such file"),
        ({"tls_cert": "server.pem", "tls_key": "absent.key"}, "--tls-key: .*absent.key: No such file"),
        ({"tls_cert": "server.pem", "tls_key": "server.pem"}, "--tls-cert and --tls-key do not fit"),
    ],
)
async def test_unusable_tls_files_are_a_clear_error(
    certificates: Path, files: dict[str, str], message: str
) -> None:
    settings = make_settings(**{flag: certificates / name for flag, name in files.items()})
    with pytest.raises(SettingsError, match=message):
        await GrpcServer(make_service(), settings).start()


async def test_an_ipv6_host() -> None:
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    server = GrpcServer(make_service(), make_settings(host="::1"))
    port = await server.start()
    async with grpc.aio.insecure_channel(f"[::1]:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        assert (await stub.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
    await server.stop(0.0)
