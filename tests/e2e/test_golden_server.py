"""The published answers over the wire: REST, SSE and gRPC give one and the same, alone and all at once."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from server_process import ServerProcess

from server.pb import speech_pb2 as pb
from server.pb.speech_pb2_grpc import SpeechChatStub

GOLDEN = Path(__file__).parent.parent / "golden"
CASES: list[dict[str, Any]] = json.loads((GOLDEN / "golden.json").read_text(encoding="utf-8"))["cases"]
by_case = pytest.mark.parametrize("case", CASES, ids=[f"{c['audio']}-{i}" for i, c in enumerate(CASES)])


def clip(case: dict[str, Any]) -> bytes:
    return (GOLDEN / "audio" / case["audio"]).read_bytes()


def expected_ids(case: dict[str, Any]) -> list[int]:
    return list(case["generated_ids"][:-1])


def finish_reason(case: dict[str, Any]) -> str:
    return "stop" if len(case["generated_ids"]) < 49 else "length"


def form(case: dict[str, Any], **fields: str) -> dict[str, Any]:
    data = {"prompt": case["prompt"], "max_tokens": "48", "return_token_ids": "true", **fields}
    return {"files": {"file": ("clip.wav", clip(case))}, "data": data}


def read_sse(body: str) -> tuple[list[int], str, str]:
    """Token ids, text and finish reason of a whole stream."""
    lines = [line.removeprefix("data: ") for line in body.split("\n\n") if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert choices[0]["delta"]["role"] == "assistant"
    ids = [token for choice in choices for token in choice["delta"].get("token_ids") or ()]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    return ids, text, choices[-1]["finish_reason"]


def request(case: dict[str, Any], data: bytes) -> pb.ChatRequest:
    generation = pb.Generation(max_tokens=48, temperature=0, return_token_ids=True)
    return pb.ChatRequest(audio=pb.Audio(data=data), prompt=case["prompt"], generation=generation)


@by_case
def test_rest_multipart_and_json(server: ServerProcess, case: dict[str, Any]) -> None:
    multipart = httpx.post(f"{server.url}/v1/speech/chat", **form(case), timeout=60).json()
    encoded = base64.b64encode(clip(case)).decode()
    body = {"audio": {"data": encoded}, "prompt": case["prompt"], "max_tokens": 48, "return_token_ids": True}
    plain = httpx.post(f"{server.url}/v1/speech/chat", json=body, timeout=60).json()
    for answer in (multipart, plain):
        choice = answer["choices"][0]
        assert choice["token_ids"] == expected_ids(case)
        assert choice["finish_reason"] == finish_reason(case)
        assert answer["usage"]["completion_tokens"] == len(expected_ids(case))
        assert answer["audio"]["duration_s"] == pytest.approx(case["seconds"], abs=1e-3)
    assert multipart["choices"][0]["message"] == plain["choices"][0]["message"]


@by_case
def test_an_answer_from_the_caches_is_the_published_one_too(
    server: ServerProcess, case: dict[str, Any]
) -> None:
    """The second time neither the clip is encoded nor all of the prompt read."""
    for _ in range(2):
        answer = httpx.post(f"{server.url}/v1/speech/chat", **form(case), timeout=60).json()
    assert answer["timings"]["encode_ms"] == 0
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0
    assert answer["choices"][0]["token_ids"] == expected_ids(case)


@by_case
def test_sse_joins_to_the_unstreamed_answer(server: ServerProcess, case: dict[str, Any]) -> None:
    url = f"{server.url}/v1/speech/chat"
    whole = httpx.post(url, **form(case), timeout=60).json()["choices"][0]
    streamed = httpx.post(url, **form(case, stream="true"), timeout=60)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    ids, text, reason = read_sse(streamed.text)
    assert ids == expected_ids(case)
    assert text.encode() == whole["message"]["content"].encode()
    assert reason == whole["finish_reason"]


@by_case
async def test_grpc_methods(server: ServerProcess, case: dict[str, Any]) -> None:
    async with grpc.aio.insecure_channel(server.grpc_target) as channel:
        stub = SpeechChatStub(channel)
        whole = await stub.Chat(request(case, clip(case)))
        streamed = [event async for event in stub.ChatStream(request(case, clip(case)))]
        uploaded = [event async for event in stub.ChatUpload(pieces(case, size=777))]
    assert list(whole.token_ids) == expected_ids(case)
    assert whole.finish_reason == finish_reason(case)
    for events in (streamed, uploaded):
        assert events[0].HasField("accepted")
        assert events[-1].HasField("done")
        deltas = [event.delta for event in events[1:-1]]
        assert [token for delta in deltas for token in delta.token_ids] == expected_ids(case)
        assert "".join(delta.text for delta in deltas) == whole.text


def pieces(case: dict[str, Any], size: int) -> list[pb.ChatUploadRequest]:
    """The config, then the clip cut into `size` bytes."""
    data = clip(case)
    config = request(case, b"")
    config.ClearField("audio")
    chunks = [data[start : start + size] for start in range(0, len(data), size)]
    return [pb.ChatUploadRequest(config=config), *(pb.ChatUploadRequest(chunk=chunk) for chunk in chunks)]


async def test_all_cases_at_once_over_both_transports(server: ServerProcess) -> None:
    async with (
        httpx.AsyncClient(timeout=120) as client,
        grpc.aio.insecure_channel(server.grpc_target) as channel,
    ):
        stub = SpeechChatStub(channel)
        rest = [client.post(f"{server.url}/v1/speech/chat", **form(case)) for case in CASES]
        calls = [stub.Chat(request(case, clip(case))) for case in CASES]
        answers = await asyncio.gather(*rest, *calls)
    count = len(CASES)
    got = [answer.json()["choices"][0]["token_ids"] for answer in answers[:count]]
    got += [list(answer.token_ids) for answer in answers[count:]]
    assert got == 2 * [expected_ids(case) for case in CASES]
