"""Bad input over real sockets: the promised status, the promised body, no internals, and no harm done."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import httpx
import pytest
from audio_samples import wav
from bad_clips import BAD_CLIPS, MIB, TOO_LARGE
from e2e_client import (
    CHAT,
    HTTP,
    ask_golden,
    chat_request,
    check_error,
    check_idle,
    form,
    growth,
    grpc_refusal,
    json_body,
    metrics_of,
    refusal,
    upload_of,
)
from server_process import ServerProcess

from server.pb import speech_pb2 as pb
from server.pb.speech_pb2_grpc import SpeechChatStub

CLIP = wav(0.3)
BODY = json.dumps(json_body(CLIP)).encode()
JSON = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=B"}
FILE = (b'name="file"; filename="a.wav"', CLIP)
PROMPT = (b'name="prompt"', b"What was said?")
INVALID = (400, "invalid_request")


@pytest.fixture(autouse=True)
def _nothing_is_broken(server: ServerProcess) -> Iterator[None]:
    """After each of these tests the next good request is answered as ever, and nothing is held."""
    before = metrics_of(server)
    yield
    ask_golden(server)
    check_idle(server)
    counted = growth(before, metrics_of(server))
    assert not [name for name in counted if name.endswith(("/internal_error", "/engine_error"))], counted
    assert counted["request_success_total/stop"] >= 1
    assert "Traceback" not in server.text


def parts(*fields: tuple[bytes, bytes]) -> bytes:
    """A multipart body of these dispositions and contents."""
    pieces = [b"--B\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % field for field in fields]
    return b"".join(pieces) + b"--B--\r\n"


def with_field(text: str) -> bytes:
    """The good JSON body with one more field, as it is."""
    return BODY[:-1] + b"," + text.encode() + b"}"


@pytest.fixture(scope="module", params=BAD_CLIPS, ids=list(BAD_CLIPS))
def bad_clip(request: pytest.FixtureRequest) -> tuple[bytes, tuple[int, str, str]]:
    """Bytes, and the refusal that they deserve."""
    make, wanted = BAD_CLIPS[request.param]
    return make(), wanted


async def grpc_errors(server: ServerProcess, data: bytes) -> list[tuple[grpc.StatusCode, str]]:
    """What each of the methods says to the clip."""
    async with grpc.aio.insecure_channel(server.grpc_target) as channel:
        stub = SpeechChatStub(channel)
        with pytest.raises(grpc.RpcError) as whole:
            await stub.Chat(chat_request("Hi", data))
        with pytest.raises(grpc.RpcError) as streamed:
            await anext(aiter(stub.ChatStream(chat_request("Hi", data))))
        with pytest.raises(grpc.RpcError) as uploaded:
            await anext(aiter(stub.ChatUpload(upload_of("Hi", data, size=65536))))
    return [grpc_refusal(error.value) for error in (whole, streamed, uploaded)]


async def test_a_bad_clip(server: ServerProcess, bad_clip: tuple[bytes, tuple[int, str, str]]) -> None:
    data, wanted = bad_clip
    begin = time.monotonic()
    assert refusal(HTTP.post(server.url + CHAT, **form("Hi", data))) == wanted
    assert refusal(HTTP.post(server.url + CHAT, json=json_body(data))) == wanted
    code = grpc.StatusCode.RESOURCE_EXHAUSTED if wanted is TOO_LARGE else grpc.StatusCode.INVALID_ARGUMENT
    assert await grpc_errors(server, data) == [(code, wanted[1])] * 3
    assert time.monotonic() - begin < 10, "refused late: was it decoded whole?"


BAD_FIELDS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": ({"foo": 1}, "foo"),
    "unknown-inside": ({"audio": {"data": "AAAA", "url": "file:///etc/passwd"}}, "audio.url"),
    "no-prompt": ({"prompt": ...}, "prompt"),
    "prompt-null": ({"prompt": None}, "prompt"),
    "prompt-nested": ({"prompt": [[["x"]]]}, "prompt"),
    "prompt-300-kb": ({"prompt": "x" * 300_000}, "prompt"),
    "prompt-surrogate": ({"prompt": "\ud800"}, "prompt"),
    "system-surrogate": ({"system": "a\udfff"}, "system"),
    "stop-surrogate": ({"stop": ["\ud83d"]}, "stop"),
    "max-tokens-text": ({"max_tokens": "5"}, "max_tokens"),
    "max-tokens-true": ({"max_tokens": True}, "max_tokens"),
    "max-tokens-float": ({"max_tokens": 5.5}, "max_tokens"),
    "max-tokens-0": ({"max_tokens": 0}, "max_tokens"),
    "max-tokens-513": ({"max_tokens": 513}, "max_tokens"),
    "temperature": ({"temperature": -0.1}, "temperature"),
    "top-p": ({"top_p": 0}, "top_p"),
    "top-k": ({"top_k": -1}, "top_k"),
    "seed-65-bit": ({"seed": 2**64}, "seed"),
    "seed-4000-digits": ({"seed": 10**4000}, "seed"),
    "five-stops": ({"stop": list("abcde")}, "stop"),
    "empty-stop": ({"stop": ""}, "stop"),
    "stream-text": ({"stream": "yes"}, "stream"),
    "timeout": ({"timeout_s": 0}, "timeout_s"),
}


@pytest.mark.parametrize("name", BAD_FIELDS)
def test_a_bad_field(server: ServerProcess, name: str) -> None:
    fields, param = BAD_FIELDS[name]
    body = json.dumps(json_body(CLIP, **fields)).encode()
    response = HTTP.post(server.url + CHAT, content=body, headers=JSON)
    assert refusal(response) == (*INVALID, param)
    assert len(response.content) < 1000, "a refusal need not repeat what was sent"


BAD_AUDIO = {
    "missing": ...,
    "null": None,
    "text": "AAAA",
    "no-data": {},
    "number": {"data": 7},
    "not-base64": {"data": "!!!!"},
    "url-safe-base64": {"data": "_-__"},
    "no-padding": {"data": "AAAAA"},
    "data-url": {"data": "data:audio/wav;base64,AAAA"},
    "padding-inside": {"data": "AA==" + "A" * 2_000_000},
}


@pytest.mark.parametrize("name", BAD_AUDIO)
def test_a_bad_audio_field(server: ServerProcess, name: str) -> None:
    response = HTTP.post(server.url + CHAT, json=json_body(CLIP, audio=BAD_AUDIO[name]))
    assert refusal(response) == (400, "invalid_audio", "audio")


@pytest.mark.parametrize("stream", [True, False])
def test_an_unknown_model(server: ServerProcess, stream: bool) -> None:
    response = HTTP.post(server.url + CHAT, json=json_body(CLIP, model="gpt-9", stream=stream))
    assert refusal(response) == (404, "model_not_found", "model")


BAD_BODIES: dict[str, tuple[bytes, dict[str, str]]] = {
    "empty": (b"", JSON),
    "half": (BODY[:-1], JSON),
    "array": (b"[]", JSON),
    "nan": (with_field('"temperature":NaN'), JSON),
    "infinity": (with_field('"temperature":1e999'), JSON),
    "5000-digits": (with_field('"max_tokens":' + "9" * 5000), JSON),
    "duplicate": (with_field('"prompt":"x"'), JSON),
    "utf-8": (BODY.replace(b"What", b"\xff\xfe"), JSON),
    "utf-16": (BODY.decode().encode("utf-16"), JSON),
    "surrogate-key": (with_field('"\\ud800":1'), JSON),
    "deep-objects": (b'{"a":' * 100_000, JSON),
    "deep-arrays": (with_field('"stop":' + "[" * 1_000_000), JSON),
    "other-type": (BODY, {"content-type": "text/plain"}),
    "no-type": (BODY, {}),
    "gzip": (BODY, {**JSON, "content-encoding": "gzip"}),
    "no-boundary": (parts(FILE, PROMPT), {"content-type": "multipart/form-data"}),
    "empty-boundary": (parts(FILE, PROMPT), {"content-type": "multipart/form-data; boundary="}),
    "long-boundary": (parts(FILE, PROMPT), {"content-type": "multipart/form-data; boundary=" + "B" * 9999}),
    "other-boundary": (parts(FILE, PROMPT).replace(b"--B", b"--C"), FORM),
    "cut-form": (parts(FILE, PROMPT)[:-8], FORM),
    "5000-parts": (parts(FILE, PROMPT, *[(b'name="f%d"' % i, b"") for i in range(5000)]), FORM),
    "parts-without-heads": (b"--B\r\n\r\n" * 200_000, FORM),
    "100000-part-headers": (b"--B\r\n" + b"X: y\r\n" * 100_000 + b"\r\n\r\n--B--", FORM),
    "2-mb-part-header": (b"--B\r\nX: " + b"y" * 2_000_000 + b"\r\n\r\n\r\n--B--", FORM),
    "nameless-part": (parts(FILE, PROMPT, (b'filename="x"', b"")), FORM),
    "long-part-name": (parts(FILE, PROMPT, (b'name="%b"' % (b"n" * 5000), b"")), FORM),
}


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body(server: ServerProcess, name: str) -> None:
    content, headers = BAD_BODIES[name]
    status, code, _ = refusal(HTTP.post(server.url + CHAT, content=content, headers=headers))
    assert (status, code) == INVALID


BAD_FORMS: dict[str, tuple[list[tuple[bytes, bytes]], tuple[str, str]]] = {
    "no-file": ([PROMPT], ("invalid_audio", "audio")),
    "no-prompt": ([FILE], ("invalid_request", "prompt")),
    "two-files": ([FILE, FILE, PROMPT], ("invalid_request", "file")),
    "two-prompts": ([FILE, PROMPT, PROMPT], ("invalid_request", "prompt")),
    "prompt-not-utf-8": ([FILE, (b'name="prompt"', b"\xc3(")], ("invalid_request", "prompt")),
    "prompt-300-kb": ([FILE, (b'name="prompt"', b"x" * 300_000)], ("invalid_request", "prompt")),
    "prompt-as-file": ([FILE, (b'name="prompt"; filename="p"', b"x")], ("invalid_request", "prompt")),
    "file-elsewhere": ([PROMPT, (b'name="evil"; filename="../../x"', b"")], ("invalid_request", "evil")),
    "unknown-field": ([FILE, PROMPT, (b'name="foo"', b"1")], ("invalid_request", "foo")),
    "number": ([FILE, PROMPT, (b'name="max_tokens"', b"five")], ("invalid_request", "max_tokens")),
    "deep-stop": ([FILE, PROMPT, (b'name="stop"', b"[" * 10_000)], ("invalid_request", "stop")),
    "surrogate": ([FILE, PROMPT, (b'name="stop"', b'["\\ud800"]')], ("invalid_request", "stop")),
}


@pytest.mark.parametrize("name", BAD_FORMS)
def test_a_bad_form(server: ServerProcess, name: str) -> None:
    fields, wanted = BAD_FORMS[name]
    response = HTTP.post(server.url + CHAT, content=parts(*fields), headers=FORM)
    assert refusal(response) == (400, *wanted)


def exchange(server: ServerProcess, data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send the bytes on a socket of our own; status, headers and body of the answer, to the end."""
    with socket.create_connection(("127.0.0.1", server.ports["http"]), timeout=10) as client:
        client.sendall(data)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    return int(first.split(" ")[1]), dict(line.split(": ", 1) for line in lines), body


def head(*lines: str, kind: str = "application/json") -> bytes:
    """The head of a POST with these lines."""
    first = (f"POST {CHAT} HTTP/1.1", "host: test", "connection: close", f"content-type: {kind}")
    return "".join(f"{line}\r\n" for line in (*first, *lines, "")).encode()


BAD_HEADS: dict[str, tuple[bytes, int]] = {
    "no-http": (b"EHLO there\r\n\r\n", 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    "http-2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "unknown-method": (b"BREW /coffee HTTP/1.1\r\nhost: x\r\n\r\n", 400),
    "length-is-text": (head("content-length: abc"), 400),
    "negative-length": (head("content-length: -1"), 400),
    "two-lengths": (head("content-length: 5", "content-length: 6") + b"abcdef", 400),
    "length-and-chunks": (head("content-length: 5", "transfer-encoding: chunked") + b"0\r\n\r\n", 400),
    "bad-chunk": (head("transfer-encoding: chunked") + b"zz\r\n\r\n", 400),
    "endless-trailers": (head("transfer-encoding: chunked") + b"0\r\n" + b"a: b\r\n" * 33_000, 400),
    "one-endless-trailer": (head("transfer-encoding: chunked") + b"0\r\na: " + b"b" * 300_000, 400),
    "chunk-extension": (head("transfer-encoding: chunked") + b"1;" + b"e" * 300_000, 400),
    "a-terabyte": (head("content-length: 999999999999"), 413),
    "200-kb-header": (head("x-a: " + "a" * 200_000, "content-length: 0"), 400),
    "200-kb-of-headers": (head(*["a: b"] * 33_000, "content-length: 0"), 400),
    "200-kb-path": (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", BAD_HEADS)
def test_a_bad_head(server: ServerProcess, name: str) -> None:
    data, wanted = BAD_HEADS[name]
    status, headers, body = exchange(server, data)
    assert status == wanted
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]
    check_error(json.loads(body))


def test_a_body_that_is_cut_off_counts_as_a_client_that_left(server: ServerProcess) -> None:
    before = metrics_of(server)
    with socket.create_connection(("127.0.0.1", server.ports["http"])) as client:
        client.sendall(head("content-length: 5000") + BODY[:1000])
    check_idle(server)
    assert growth(before, metrics_of(server)) == {
        "requests_accepted_total": 1,
        "requests_cancelled_total/receiving": 1,
    }



BAD_MESSAGES: dict[str, Callable[[], bytes]] = {
    "garbage": lambda: b"\xff" * 100,
    "cut": lambda: chat_request("Hi", CLIP).SerializeToString()[:-1],
    "prompt-not-utf-8": lambda: (
        chat_request("Hello", CLIP).SerializeToString().replace(b"Hello", b"\xff\xfeabc")
    ),
    "prompt-300-kb": lambda: chat_request("x" * 300_000, CLIP).SerializeToString(),
    "no-audio": lambda: chat_request("Hi", None).SerializeToString(),
    "empty": lambda: b"",
    "max-tokens": lambda: chat_request("Hi", CLIP, 100_000).SerializeToString(),
    "nan": lambda: pb.ChatRequest(
        prompt="Hi", audio=pb.Audio(data=CLIP), generation=pb.Generation(temperature=float("nan"))
    ).SerializeToString(),
    "request-id": lambda: pb.ChatRequest(
        prompt="Hi", audio=pb.Audio(data=CLIP), request_id="a\nb"
    ).SerializeToString(),
}


@pytest.mark.parametrize("name", BAD_MESSAGES)
async def test_a_bad_message(server: ServerProcess, name: str) -> None:
    async with grpc.aio.insecure_channel(server.grpc_target) as channel:
        for path in ("Chat", "ChatStream"):
            call = channel.unary_stream(f"/wavllm.v1.SpeechChat/{path}")(BAD_MESSAGES[name]())
            with pytest.raises(grpc.RpcError) as error:
                await anext(aiter(call))
            status, _ = grpc_refusal(error.value)
            assert status is grpc.StatusCode.INVALID_ARGUMENT


CONFIG = pb.ChatUploadRequest(config=chat_request("Hi", None))
BAD_UPLOADS: dict[str, list[pb.ChatUploadRequest]] = {
    "nothing": [],
    "no-config": [pb.ChatUploadRequest(chunk=CLIP)],
    "config-only": [CONFIG],
    "two-configs": [CONFIG, CONFIG, pb.ChatUploadRequest(chunk=CLIP)],
    "empty-message": [CONFIG, pb.ChatUploadRequest()],
    "audio-in-config": [pb.ChatUploadRequest(config=chat_request("Hi", CLIP))],
}


@pytest.mark.parametrize("name", BAD_UPLOADS)
async def test_a_bad_upload(server: ServerProcess, name: str) -> None:
    async with grpc.aio.insecure_channel(server.grpc_target) as channel:
        call = SpeechChatStub(channel).ChatUpload(BAD_UPLOADS[name])
        with pytest.raises(grpc.RpcError) as error:
            await anext(aiter(call))
    assert grpc_refusal(error.value)[0] is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_message_over_the_receive_limit(server: ServerProcess) -> None:
    """The library refuses it before our code runs, with the same status."""
    async with grpc.aio.insecure_channel(server.grpc_target) as channel:
        with pytest.raises(grpc.RpcError) as error:
            await SpeechChatStub(channel).Chat(chat_request("Hi", b"\0" * (27 * MIB)))
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_an_unknown_method(server: ServerProcess) -> None:
    async with grpc.aio.insecure_channel(server.grpc_target) as channel:
        with pytest.raises(grpc.RpcError) as error:
            await channel.unary_unary("/wavllm.v1.SpeechChat/Sing")(b"")
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_all_of_it_at_once_changes_no_answer(server: ServerProcess) -> None:
    """Good requests between the bad ones are answered as if they were alone."""
    async with httpx.AsyncClient(timeout=60) as client:
        url = server.url + CHAT
        bad = [client.post(url, content=body, headers=kind) for body, kind in BAD_BODIES.values()]
        clips = [make() for name, (make, _) in BAD_CLIPS.items() if name != "one-byte-over-the-cap"]
        bad += [client.post(url, **form("Hi", data)) for data in clips]
        good = [asyncio.to_thread(ask_golden, server) for _ in range(6)]
        answers, _ = await asyncio.gather(asyncio.gather(*bad), asyncio.gather(*good))
    assert {refusal(answer)[0] for answer in answers} == {400, 415}
