"""What stands in front of the server in real life: curl, grpcurl, probes, old clients, keys and TLS."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from e2e_client import (
    CASES,
    CHAT,
    HTTP,
    SHORT,
    TIMEOUT_S,
    ask_grpc,
    chat_request,
    check_error,
    check_idle,
    clip_of,
    golden_form,
    golden_ids,
    growth,
    grpc_refusal,
    json_body,
    metrics_of,
    read_sse,
    refusal,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from server_process import ServerProcess

from server.pb import speech_pb2 as pb
from server.pb.speech_pb2_grpc import SpeechChatStub

SERVICE = "wavllm.v1.SpeechChat"
METHODS = ("Chat", "ChatStream", "ChatUpload")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")


def curl(*arguments: str) -> tuple[str, str]:
    """The body that the real curl prints, and what it tells of the exchange; fails if curl does."""
    command = ["curl", "--silent", "--show-error", "--verbose", "--max-time", "60", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def golden_file(case_audio: str) -> str:
    return str(Path(__file__).parent.parent / "golden" / "audio" / case_audio)


@needs_curl
def test_curl_streams_as_it_is_generated(server: ServerProcess) -> None:
    """The first event comes before the last: -N shows each as it arrives."""
    fields = ["-F", f"file=@{golden_file(SHORT['audio'])}", "-F", f"prompt={SHORT['prompt']}"]
    fields += ["-F", "stream=true", "-F", "max_tokens=48", "-F", "return_token_ids=true"]
    command = ["curl", "--silent", "-N", "-i", server.url + CHAT, *fields]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [(time.monotonic(), line) for line in process.stdout]
    text = "".join(line for _, line in lines)
    head, _, body = text.partition("\n\n")
    assert "content-type: text/event-stream" in head
    assert "cache-control: no-cache" in head
    assert "x-accel-buffering: no" in head
    assert "content-length" not in head
    assert read_sse(body) == (golden_ids(SHORT), {})
    events = [moment for moment, line in lines if line.startswith("data: ")]
    assert events[-1] - events[0] > 0.02, "all events came at once"


@needs_curl
def test_curl_sends_a_big_body_after_100_continue(server: ServerProcess, tmp_path: Path) -> None:
    """And does not send one that is refused by its head."""
    (story,) = [case for case in CASES if case["audio"] == "story.wav"]
    answer, told = curl(
        *("-H", "Expect: 100-continue", server.url + CHAT),
        *("-F", f"file=@{golden_file('story.wav')}", "-F", f"prompt={story['prompt']}"),
        *("-F", "max_tokens=48", "-F", "return_token_ids=true"),
    )
    assert "HTTP/1.1 100 Continue" in told
    assert json.loads(answer)["choices"][0]["token_ids"] == golden_ids(story)

    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(40 * 2**20)
    expect = ("-H", "Expect: 100-continue", "-H", "content-type: application/json")
    answer, told = curl(*expect, "--data-binary", f"@{huge}", server.url + CHAT)
    assert "HTTP/1.1 413 " in told
    assert "100 Continue" not in told
    assert check_error(json.loads(answer))["code"] == "payload_too_large"


@needs_curl
def test_curl_reads_the_status_of_a_body_that_is_too_large(server: ServerProcess, tmp_path: Path) -> None:
    """Without waiting for a 100: it is in the middle of its upload when it is refused."""
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(40 * 2**20)
    answer, told = curl("-H", "Expect:", "-F", f"file=@{huge}", server.url + CHAT)
    assert "HTTP/1.1 413 " in told
    assert check_error(json.loads(answer))["code"] == "payload_too_large"


def test_an_http_1_0_client(server: ServerProcess) -> None:
    """It gets its answer and the end of the connection."""
    fields = json_body(clip_of(SHORT), SHORT["prompt"], max_tokens=48, return_token_ids=True)
    body = json.dumps(fields).encode()
    head = f"POST {CHAT} HTTP/1.0\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.ports["http"]), timeout=20) as client:
        client.sendall(head.encode() + body)
        answer = b"".join(iter(lambda: client.recv(65536), b"")).decode()
    answer_head, _, text = answer.partition("\r\n\r\n")
    assert " 200 " in answer_head.splitlines()[0]
    assert "connection: close" in answer_head
    assert "transfer-encoding" not in answer_head
    assert json.loads(text)["choices"][0]["token_ids"] == golden_ids(SHORT)


def test_a_connection_is_used_again_after_errors(server: ServerProcess) -> None:
    """One TCP connection for all of it: httpx reports the socket that each exchange ran over."""
    ports = set()
    with httpx.Client(timeout=TIMEOUT_S, limits=httpx.Limits(max_connections=1)) as client:

        def note(response: httpx.Response) -> None:
            ports.add(response.extensions["network_stream"].get_extra_info("client_addr")[1])

        client.event_hooks = {"response": [note]}
        assert refusal(client.get(server.url + "/nope"))[0] == 404
        as_json = {"content-type": "application/json"}
        assert refusal(client.post(server.url + CHAT, content=b"{", headers=as_json))[0] == 400
        assert refusal(client.post(server.url + CHAT, content=b"x" * 500_000))[0] == 400
        assert refusal(client.get(server.url + CHAT))[0] == 405
        answer = client.post(server.url + CHAT, **golden_form(SHORT))
        assert answer.json()["choices"][0]["token_ids"] == golden_ids(SHORT)
        streamed = client.post(server.url + CHAT, **golden_form(SHORT, stream="true"))
        assert read_sse(streamed.text)[0] == golden_ids(SHORT)
        assert client.get(server.url + "/livez").status_code == 200
    assert len(ports) == 1


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", CHAT, 405, "POST"),
        ("HEAD", CHAT, 405, "POST"),
        ("OPTIONS", CHAT, 405, "POST"),
        ("PUT", "/v1/models", 405, "GET"),
        ("DELETE", "/readyz", 405, "GET"),
        ("GET", "/nope", 404, None),
        ("HEAD", "/nope", 404, None),
        ("POST", CHAT + "/", 404, None),
        ("GET", "/v1/models/../../etc/passwd", 404, None),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404, None),
        ("GET", "/docs", 404, None),
    ],
)
def test_routes_and_methods_that_are_not_there(
    server: ServerProcess, method: str, path: str, status: int, allow: str | None
) -> None:
    response = HTTP.request(method, server.url + path, headers={"origin": "http://elsewhere.example"})
    assert response.status_code == status
    assert response.headers["x-request-id"]
    if allow is not None:
        assert allow in response.headers["allow"]
    if method == "HEAD":
        assert response.content == b""
    else:
        assert refusal(response)[1] == {404: "not_found", 405: "method_not_allowed"}[status]
    assert not [name for name in response.headers if name.startswith("access-control-")], "no CORS"


def test_probes_answer_head_too(server: ServerProcess) -> None:
    for path in ("/livez", "/readyz", "/health"):
        response = HTTP.head(server.url + path)
        assert (response.status_code, response.content) == (200, b"")


def test_the_clients_request_id_comes_back(server: ServerProcess) -> None:
    for path in ("/livez", "/nope"):
        response = HTTP.get(server.url + path, headers={"x-request-id": "my-own.id:1"})
        assert response.headers["x-request-id"] == "my-own.id:1"
    response = HTTP.get(server.url + "/livez", headers={"x-request-id": "x" * 5000})
    assert len(response.headers["x-request-id"]) == 32, "too long to be echoed"


async def test_reflection_lists_what_grpcurl_lists(server: ServerProcess) -> None:
    async with grpc.aio.insecure_channel(server.grpc_target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        wanted = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol=SERVICE),
        ]
        listed, described = [answer async for answer in stub.ServerReflectionInfo(iter(wanted))]
    names = {service.name for service in listed.list_services_response.service}
    assert names == {SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}
    (file, *_) = described.file_descriptor_response.file_descriptor_proto
    assert file == pb.DESCRIPTOR.serialized_pb


async def test_grpc_health(server: ServerProcess) -> None:
    async with grpc.aio.insecure_channel(server.grpc_target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICE):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(grpc.RpcError) as error:
            await stub.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert error.value.code() is grpc.StatusCode.NOT_FOUND


async def test_grpc_web_of_http_on_the_wrong_port(server: ServerProcess) -> None:
    """HTTP/1.1 to the gRPC port, gRPC to the HTTP port: an error at once, and no harm."""
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://{server.grpc_target}/livez", timeout=5)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.ports['http']}") as channel:
        with pytest.raises(grpc.RpcError) as error:
            await SpeechChatStub(channel).GetModelInfo(pb.GetModelInfoRequest(), timeout=5)
    assert error.value.code() is grpc.StatusCode.UNAVAILABLE
    check_idle(server)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A self-signed certificate for this machine and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    subject = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")
    files = ("-keyout", str(key), "-out", str(cert))
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files]
    subprocess.run(command, check=True, capture_output=True)
    return cert, key


class Secured(ServerProcess):
    """The same server behind TLS and keys; `ca` is what clients trust."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.ca, key = make_certificate(folder)
        keys = folder / "keys.txt"
        keys.write_text("# two users\nalpha-key\nbeta-key\n")
        self.client = httpx.Client(verify=ssl.create_default_context(cafile=self.ca), timeout=TIMEOUT_S)
        flags = ("--tls-cert", str(self.ca), "--tls-key", str(key), "--api-key-file", str(keys))
        super().__init__(model, *flags, "--rate-limit", "3")

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.ports['http']}"

    def wait_until_ready(self) -> None:
        assert self._listening.wait(90), self.text
        while self.client.get(f"{self.url}/readyz").status_code != 200:
            assert self.process.poll() is None, self.text
            time.sleep(0.05)

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(self.grpc_target, grpc.ssl_channel_credentials(self.ca.read_bytes()))


@pytest.fixture(scope="module")
def secured(golden_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    with Secured(golden_model, tmp_path_factory.mktemp("tls")) as running:
        yield running
        running.client.close()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def rested() -> None:
    """Long enough for a bucket of three to be full again."""
    time.sleep(1.1)


@needs_openssl
@pytest.mark.parametrize("authorization", [None, "Bearer gamma", "Bearer", "Basic alpha-key", "alpha-key"])
def test_a_wrong_key(secured: Secured, authorization: str | None) -> None:
    headers = {} if authorization is None else {"authorization": authorization}
    before = metrics_of(secured)
    for response in (
        secured.client.post(secured.url + CHAT, headers=headers, **golden_form(SHORT)),
        secured.client.get(f"{secured.url}/v1/models", headers=headers),
        secured.client.get(f"{secured.url}/v1/load", headers=headers),
    ):
        assert refusal(response) == (401, "invalid_api_key", None)
        assert response.headers["www-authenticate"] == "Bearer"
    assert growth(before, metrics_of(secured)) == {"requests_rejected_total/invalid_api_key": 1}
    assert secured.client.get(f"{secured.url}/readyz").status_code == 200, "probes need no key"


@needs_openssl
async def test_a_wrong_key_over_grpc(secured: Secured) -> None:
    async with secured.channel() as channel:
        stub = SpeechChatStub(channel)
        for metadata in ((), (("authorization", "Bearer gamma"),), (("authorization", "alpha-key"),)):
            with pytest.raises(grpc.RpcError) as error:
                await stub.Chat(chat_request("Hi", clip_of(SHORT)), metadata=metadata)
            assert grpc_refusal(error.value) == (grpc.StatusCode.UNAUTHENTICATED, "invalid_api_key")
        answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, "probes need no key"


@needs_openssl
async def test_the_right_key_over_tls(secured: Secured) -> None:
    rested()
    whole = secured.client.post(secured.url + CHAT, headers=bearer("alpha-key"), **golden_form(SHORT))
    assert whole.json()["choices"][0]["token_ids"] == golden_ids(SHORT)
    async with secured.channel() as channel:
        request = chat_request(SHORT["prompt"], clip_of(SHORT))
        answer = await SpeechChatStub(channel).Chat(request, metadata=(("authorization", "Bearer beta-key"),))
    assert list(answer.token_ids) == golden_ids(SHORT)


@needs_openssl
async def test_each_key_has_a_rate_of_its_own(secured: Secured) -> None:
    rested()
    body = json_body(b"not audio")
    replies = [
        secured.client.post(secured.url + CHAT, headers=bearer("alpha-key"), json=body) for _ in range(6)
    ]
    statuses = [reply.status_code for reply in replies]
    assert statuses.count(429) >= 2
    limited = replies[statuses.index(429)]
    assert refusal(limited) == (429, "rate_limited", None)
    assert limited.headers["retry-after"] == "1"
    async with secured.channel() as channel:
        stub, request = SpeechChatStub(channel), chat_request("Hi", b"not audio")
        codes = []
        for _ in range(6):
            with pytest.raises(grpc.RpcError) as error:
                await stub.Chat(request, metadata=(("authorization", "Bearer alpha-key"),))
            codes.append(grpc_refusal(error.value))
        assert (grpc.StatusCode.RESOURCE_EXHAUSTED, "rate_limited") in codes
    other = secured.client.post(secured.url + CHAT, headers=bearer("beta-key"), json=body)
    assert other.status_code == 415, "the other key is not affected"


@needs_openssl
async def test_plain_text_on_tls_ports(secured: Secured) -> None:
    plain = secured.url.replace("https", "http")
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"{plain}/livez", timeout=5)
    async with grpc.aio.insecure_channel(secured.grpc_target) as channel:
        with pytest.raises(grpc.RpcError) as error:
            await SpeechChatStub(channel).GetModelInfo(pb.GetModelInfoRequest(), timeout=3)
    assert error.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert secured.client.get(f"{secured.url}/livez").status_code == 200


@needs_openssl
def test_no_key_is_ever_logged(secured: Secured) -> None:
    assert "alpha-key" not in secured.text
    assert "gamma" not in secured.text
    assert "Traceback" not in secured.text


@pytest.mark.parametrize("method", METHODS)
async def test_a_channel_is_used_again_after_errors(server: ServerProcess, method: str) -> None:
    async with grpc.aio.insecure_channel(server.grpc_target) as channel:
        stub = SpeechChatStub(channel)
        with pytest.raises(grpc.RpcError):
            await stub.Chat(chat_request("Hi", b""))
        assert await ask_grpc(stub, method, SHORT) == golden_ids(SHORT)
