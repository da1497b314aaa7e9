"""More than the server can take: a refusal is a proper reply and costs no decoding, and the books balance."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import httpx
import pytest
from audio_samples import wav
from e2e_client import (
    CHAT,
    HTTP,
    chat_request,
    check_idle,
    growth,
    grpc_refusal,
    load_of,
    metrics_of,
    refusal,
    until,
    upload_of,
)
from grpc_harness import details_of
from random_models import make_endless
from server_process import ServerProcess

from server.pb.speech_pb2_grpc import SpeechChatStub

NUM_CLIENTS = 64
CLIP = wav(0.5)
MIB = 2**20
MANY_TOKENS = 1500
"""So many take longer than what is tested beside them, also on a quick machine."""
FLAGS = {
    "--max-batch-size": "1",
    "--max-queued-requests": "4",
    "--max-queued-audio-seconds": "6",
    "--max-upload-mb": "1",
    "--max-inflight-mb": "4",
    "--queue-timeout": "3",
    "--request-timeout": "20",
    "--max-new-tokens": str(MANY_TOKENS),
}


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A place for one, a queue for four, little room."""
    model = make_endless(tmp_path_factory.mktemp("endless") / "model", layers=24)
    with ServerProcess(model, *(text for pair in FLAGS.items() for text in pair)) as running:
        yield running


@pytest.fixture(autouse=True)
def _everything_ends(busy: ServerProcess) -> Iterator[None]:
    yield
    check_idle(busy, 20)


def fields(clip: bytes = CLIP, **given: str) -> dict[str, Any]:
    """Arguments of a multipart request whose answer takes a while."""
    return {"files": {"file": ("clip", clip)}, "data": {"prompt": "Hi", "max_tokens": "100", **given}}


async def post(client: httpx.AsyncClient, url: str, **given: str) -> str:
    """Ask; the code of the refusal, or "ok"."""
    response = await client.post(url, **fields(**given))
    if response.status_code == 200:
        return "ok"
    status, code, _ = refusal(response)
    if code == "overloaded":
        assert status == 503
        assert 1 <= int(response.headers["retry-after"]) <= 60
    return code


async def call(stub: SpeechChatStub, method: str) -> str:
    """As `post`, over gRPC."""
    try:
        if method == "Chat":
            await stub.Chat(chat_request("Hi", CLIP, 100), timeout=30)
        else:
            messages = upload_of("Hi", CLIP, 100)
            [event async for event in stub.ChatUpload(messages, timeout=30)]
    except grpc.aio.AioRpcError as error:
        return overload_code(error)
    return "ok"


def overload_code(error: grpc.aio.AioRpcError) -> str:
    """The code of the refusal, which says when to come back if it is for overload."""
    status, code = grpc_refusal(error)
    if code == "overloaded":
        assert status is grpc.StatusCode.UNAVAILABLE
        assert details_of(error)["RetryInfo"].retry_delay.ToMilliseconds() >= 1000
    return code


@contextlib.asynccontextmanager
async def watched_health(server: ServerProcess) -> AsyncIterator[list[float]]:
    """Ask for health all the while; the seconds of each answer."""
    seconds: list[float] = []

    async def watch() -> None:
        async with httpx.AsyncClient() as client:
            while True:
                begin = time.monotonic()
                for path in ("/livez", "/readyz"):
                    assert (await client.get(server.url + path)).status_code == 200
                seconds.append((time.monotonic() - begin) / 2)
                await asyncio.sleep(0.02)

    task = asyncio.create_task(watch())
    yield seconds
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("share_of_grpc", [0.0, 0.5])
async def test_64_uploads_at_once(busy: ServerProcess, share_of_grpc: float) -> None:
    before = metrics_of(busy)
    num_calls = int(NUM_CLIENTS * share_of_grpc)
    async with (
        grpc.aio.insecure_channel(busy.grpc_target) as channel,
        httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=NUM_CLIENTS)) as client,
        watched_health(busy) as health,
    ):
        stub = SpeechChatStub(channel)
        calls = [call(stub, ("Chat", "ChatUpload")[index % 2]) for index in range(num_calls)]
        posts = [post(client, busy.url + CHAT) for _ in range(NUM_CLIENTS - num_calls)]
        codes = Counter(await asyncio.gather(*posts, *calls))
    counted = growth(before, metrics_of(busy))
    assert set(codes) <= {"ok", "overloaded", "deadline_exceeded"}, codes
    assert codes["ok"] >= 1  # how many more before their deadline is up to the machine
    assert codes["overloaded"] >= NUM_CLIENTS // 2
    # On a slow machine some wait longer in the queue than they may, after they were accepted.
    waited = counted.get("requests_failed_total/overloaded", 0)
    accepted = NUM_CLIENTS - codes["overloaded"] + waited
    assert counted["requests_accepted_total"] == accepted
    assert counted["requests_rejected_total/overloaded"] == codes["overloaded"] - waited
    assert counted["request_success_total/length"] == codes["ok"]
    assert counted.get("requests_failed_total/deadline_exceeded", 0) == codes["deadline_exceeded"]
    decoded = counted["audio_decode_seconds_count"]
    assert decoded <= accepted, "a refused clip was decoded"
    # Who was accepted and ran out of time may have done so before its turn.
    assert decoded >= accepted - waited - codes["deadline_exceeded"]
    assert len(health) > 5
    assert sorted(health)[len(health) // 2] < 0.1


async def occupy(stack: contextlib.AsyncExitStack, server: ServerProcess, count: int) -> None:
    """Streams until the stack is closed: one that runs, the others wait."""
    client = await stack.enter_async_context(httpx.AsyncClient(timeout=60))
    for _ in range(count):
        given = fields(max_tokens=str(MANY_TOKENS), stream="true")
        await stack.enter_async_context(client.stream("POST", server.url + CHAT, **given))
        # It is accepted before it leaves the queue.
        await asyncio.to_thread(until, lambda: load_of(server)["num_requests_running"] == 1, "none runs")


async def test_a_refusal_is_quick_and_reads_nothing(busy: ServerProcess) -> None:
    """The head alone is enough for it, as `Expect: 100-continue` shows."""
    async with contextlib.AsyncExitStack() as stack:
        await occupy(stack, busy, 6)
        seconds = []
        for _ in range(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", busy.ports["http"])
            writer.write(b"POST /v1/speech/chat HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n")
            begin = time.monotonic()
            writer.write(b"content-type: application/json\r\ncontent-length: 900000\r\n\r\n")
            first = await reader.readline()
            seconds.append(time.monotonic() - begin)
            writer.close()
            await writer.wait_closed()
            assert first.startswith(b"HTTP/1.1 503 "), first
    assert sorted(seconds)[10] < 0.05, "10 ms is promised; the rest is this machine's load"


async def test_too_many_bytes_in_flight(busy: ServerProcess) -> None:
    """Three bodies of 1.33 MiB fit into 4 MiB, with their slack only two do."""
    before = metrics_of(busy)
    connections = [await asyncio.open_connection("127.0.0.1", busy.ports["http"]) for _ in range(3)]
    for _, writer in connections:
        writer.write(b"POST /v1/speech/chat HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n")
        writer.write(b"transfer-encoding: chunked\r\n\r\n")
        await asyncio.to_thread(until, lambda: metrics_of(busy) != before, "nothing happened")
        await asyncio.sleep(0.05)
    status = await connections[2][0].readline()
    assert status.startswith(b"HTTP/1.1 503 ")
    assert load_of(busy)["inflight_bytes"] > 2 * MIB
    for _, writer in connections:
        writer.close()
        await writer.wait_closed()
    check_idle(busy)
    counted = growth(before, metrics_of(busy))
    assert counted["requests_rejected_total/overloaded"] == 1
    assert counted["requests_cancelled_total/receiving"] == 2


async def test_too_many_seconds_of_audio(busy: ServerProcess) -> None:
    """Two clips of 5 s do not fit into 6 s of waiting; one longer than the budget does when alone."""
    before = metrics_of(busy)
    clip = wav(5.0)
    async with contextlib.AsyncExitStack() as stack:
        await occupy(stack, busy, 2)
        client = await stack.enter_async_context(httpx.AsyncClient(timeout=60))
        first = asyncio.create_task(client.post(busy.url + CHAT, **fields(clip)))
        await asyncio.to_thread(until, lambda: load_of(busy)["queue_audio_seconds"] >= 5, "not waiting")
        refused = await client.post(busy.url + CHAT, **fields(clip))
        assert refusal(refused)[:2] == (503, "overloaded")
        assert refused.headers["retry-after"]
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
    check_idle(busy, 5)
    assert HTTP.post(busy.url + CHAT, **fields(wav(8.0), max_tokens="2")).status_code == 200
    counted = growth(before, metrics_of(busy))
    assert counted["requests_failed_total/overloaded"] == 1


async def test_waiting_too_long(busy: ServerProcess) -> None:
    """Behind three answers of some seconds: one leaves the queue by the server's bound, one by its own."""
    async with contextlib.AsyncExitStack() as stack:
        await occupy(stack, busy, 4)
        begin = time.monotonic()
        async with httpx.AsyncClient(timeout=60) as client:
            own = client.post(busy.url + CHAT, **fields(timeout_s="0.7"))
            assert refusal(await own) == (504, "deadline_exceeded", None)
        assert time.monotonic() - begin < 2
        async with grpc.aio.insecure_channel(busy.grpc_target) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as error:
                await SpeechChatStub(channel).Chat(chat_request("Hi", CLIP), timeout=0.7)
            assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - begin < 3


async def test_the_queue_has_its_own_timeout(busy: ServerProcess) -> None:
    async with contextlib.AsyncExitStack() as stack:
        await occupy(stack, busy, 4)
        begin = time.monotonic()
        async with httpx.AsyncClient(timeout=60) as client:
            response = await client.post(busy.url + CHAT, **fields())
        assert refusal(response) == (504, "deadline_exceeded", None)
        assert 2 < time.monotonic() - begin < 5


async def test_a_running_request_ends_at_its_deadline(busy: ServerProcess) -> None:
    """Whole, as a stream, and over gRPC, where the client's own deadline counts."""
    before = metrics_of(busy)
    begin = time.monotonic()
    given = {"max_tokens": "512", "timeout_s": "0.5"}
    whole = HTTP.post(busy.url + CHAT, **fields(**given))
    assert refusal(whole) == (504, "deadline_exceeded", None)
    streamed = HTTP.post(busy.url + CHAT, **fields(stream="true", **given))
    assert streamed.status_code == 200
    assert '"code":"deadline_exceeded"' in streamed.text.split("\n\n")[-2]
    async with grpc.aio.insecure_channel(busy.grpc_target) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await SpeechChatStub(channel).Chat(chat_request("Hi", CLIP, 512), timeout=0.5)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert time.monotonic() - begin < 3
    check_idle(busy)
    counted = growth(before, metrics_of(busy))
    ended = {name: count for name, count in counted.items() if name.startswith(("requests_f", "requests_c"))}
    assert sum(ended.values()) == 3, ended
    assert counted["requests_failed_total/deadline_exceeded"] >= 2
