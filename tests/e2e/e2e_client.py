"""What the end-to-end tests ask of a real server: golden questions over every transport, and its books."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
from grpc_harness import details_of
from prometheus_client.parser import text_string_to_metric_families
from server_process import ServerProcess

from server.pb import speech_pb2 as pb
from server.pb.speech_pb2_grpc import SpeechChatStub

GOLDEN = Path(__file__).parent.parent / "golden"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))["cases"]
SHORT = CASES[2]
"""0.8 s of audio, 41 tokens of answer: the quickest question that is still a stream."""
CHAT = "/v1/speech/chat"
TIMEOUT_S = 60
HTTP = httpx.Client(timeout=TIMEOUT_S, limits=httpx.Limits(max_keepalive_connections=0))
"""A connection per request, as from many users; one client, for each new one reads all root certificates."""
GONE_WITHIN_S = 1.0
"""The promise: so long after a client left, nothing of its request is held."""
IDLE = {
    "num_requests_running": 0,
    "num_requests_waiting": 0,
    "queue_audio_seconds": 0,
    "inflight_bytes": 0,
    "kv_cache_usage": 0,
}
INTERNALS = re.compile(
    r"Traceback|site-packages|\.py\b|/(?:home|usr|root|tmp|opt|var|work|app)/"
    r"|object at 0x|AudioData|\b[A-Z]\w+(?:Error|Exception)\b"
)
"""Marks of a stack trace, a file or a class in what a client is told."""


def clip_of(case: dict[str, Any]) -> bytes:
    """The clip that a golden question is about."""
    return (GOLDEN / "audio" / case["audio"]).read_bytes()


def golden_ids(case: dict[str, Any]) -> list[int]:
    """The published answer, without its end."""
    return list(case["generated_ids"][:-1])


def form(prompt: str, data: bytes, **fields: str) -> dict[str, Any]:
    """Arguments of a multipart request."""
    given = {"prompt": prompt, "max_tokens": "48", "return_token_ids": "true", **fields}
    return {"files": {"file": ("clip", data)}, "data": given}


def golden_form(case: dict[str, Any], **fields: str) -> dict[str, Any]:
    """Arguments of a golden question as multipart."""
    return form(case["prompt"], clip_of(case), **fields)


def json_body(data: bytes, prompt: str = "What was said?", **fields: Any) -> dict[str, Any]:
    """A JSON body; a field that is `...` is left out."""
    body = {"audio": {"data": base64.b64encode(data).decode()}, "prompt": prompt, **fields}
    return {name: value for name, value in body.items() if value is not ...}


def read_sse(text: str) -> tuple[list[int], dict[str, Any]]:
    """Token ids of a whole stream, and the error that it ends with, or {} if it ends well."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks), text
    *events, last = [block.removeprefix("data: ") for block in blocks]
    chunks = [json.loads(event)["choices"][0] for event in events]
    ids = [token for chunk in chunks for token in chunk["delta"].get("token_ids") or ()]
    if last != "[DONE]":
        return ids, check_error(json.loads(last))
    assert chunks[-1]["finish_reason"] in ("stop", "length")
    return ids, {}


def chat_request(prompt: str, data: bytes | None, max_tokens: int = 48) -> pb.ChatRequest:
    """A gRPC request; without data it is the config of an upload."""
    generation = pb.Generation(max_tokens=max_tokens, return_token_ids=True)
    request = pb.ChatRequest(prompt=prompt, generation=generation)
    if data is not None:
        request.audio.data = data
    return request


def upload_of(
    prompt: str, data: bytes, max_tokens: int = 48, size: int = 4096
) -> list[pb.ChatUploadRequest]:
    """The messages of an upload in pieces of `size` bytes."""
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    config = pb.ChatUploadRequest(config=chat_request(prompt, None, max_tokens))
    return [config, *(pb.ChatUploadRequest(chunk=piece) for piece in pieces)]


def ids_of(events: list[pb.ChatEvent]) -> list[int]:
    """Token ids of a whole stream of events."""
    assert events[0].HasField("accepted")
    assert events[-1].HasField("done")
    return [token for event in events for token in event.delta.token_ids]


async def ask_grpc(stub: SpeechChatStub, method: str, case: dict[str, Any]) -> list[int]:
    """Answer of a golden question over one of the three methods."""
    prompt, data = case["prompt"], clip_of(case)
    if method == "Chat":
        return list((await stub.Chat(chat_request(prompt, data), timeout=TIMEOUT_S)).token_ids)
    call = (
        stub.ChatStream(chat_request(prompt, data), timeout=TIMEOUT_S)
        if method == "ChatStream"
        else stub.ChatUpload(upload_of(prompt, data), timeout=TIMEOUT_S)
    )
    return ids_of([event async for event in call])


def check_error(body: dict[str, Any]) -> dict[str, Any]:
    """The error of a body, after checking its shape and that it tells no internals."""
    error: dict[str, Any] = body["error"]
    assert set(body) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert not INTERNALS.search(json.dumps(error)), error
    return error


def refusal(response: httpx.Response) -> tuple[int, str, str | None]:
    """Status, code and param of an error response, after checking its form."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert not INTERNALS.search(str(response.headers))
    error = check_error(response.json())
    return response.status_code, error["code"], error["param"]


def grpc_refusal(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """Status and code of a failed call, after checking its details."""
    assert isinstance(error, grpc.aio.AioRpcError)
    details = details_of(error)
    assert not INTERNALS.search(f"{error.details()} {details}"), error
    assert details["RequestInfo"].request_id
    return error.code(), details["ErrorInfo"].reason


def ask_golden(server: ServerProcess, case: dict[str, Any] = SHORT) -> None:
    """The server answers as it always has."""
    response = HTTP.post(server.url + CHAT, **golden_form(case))
    assert response.status_code == 200, response.text
    assert response.json()["choices"][0]["token_ids"] == golden_ids(case)


def metrics_of(server: ServerProcess) -> dict[str, float]:
    """As `server.metrics()`, without a new client."""
    text = HTTP.get(f"http://127.0.0.1:{server.ports['metrics']}/metrics").text
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {"/".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


def load_of(server: ServerProcess) -> dict[str, Any]:
    """/v1/load without the state."""
    load: dict[str, Any] = HTTP.get(f"{server.url}/v1/load").json()
    del load["state"]
    return load


def until(condition: Callable[[], bool], what: str, within_s: float = 10.0) -> float:
    """Wait for the condition; the seconds that it took."""
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < within_s, what
        time.sleep(0.01)
    return time.monotonic() - begin


def ended_of(metrics: dict[str, float]) -> float:
    """Accepted requests that have an outcome."""
    ends = ("request_success_total/", "requests_failed_total/", "requests_cancelled_total/")
    return sum(value for name, value in metrics.items() if name.removeprefix("wavllm_").startswith(ends))


def check_idle(server: ServerProcess, within_s: float = GONE_WITHIN_S) -> None:
    """Within the time nothing is held, and every accepted request has exactly one outcome."""
    until(lambda: load_of(server) == IDLE, "the server is not idle", within_s)
    metrics = metrics_of(server)
    gauges = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "queue_audio_seconds")
    assert {name: metrics[f"wavllm_{name}"] for name in gauges} == dict.fromkeys(gauges, 0)
    assert metrics["wavllm_requests_accepted_total"] == ended_of(metrics)


def growth(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """What was counted in between, without the histograms' buckets and sums."""
    counted = [name for name in after if "_total" in name or name.split("/")[0].endswith("_count")]
    changes = {name.removeprefix("wavllm_"): after[name] - before.get(name, 0) for name in counted}
    return {name: change for name, change in changes.items() if change}


async def first_events(call: AsyncIterator[pb.ChatEvent], count: int) -> list[pb.ChatEvent]:
    """So many events of a stream that goes on."""
    return [await anext(call) for _ in range(count)]
