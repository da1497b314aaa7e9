"""Many calls of every kind, many of them cut off at random: nothing leaks, the law of the outcomes holds."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from fakes import FakeEngine, wav_clip
from grpc_harness import Harness, request, serving, upload

from server.pb import speech_pb2 as pb

NUM_CALLS = 300
CLIP = wav_clip(0.2)


def start_call(server: Harness, draw: random.Random) -> Any:
    """A call of a random kind; some are invalid, some have too short a deadline."""
    timeout = draw.choice([None, None, 5.0, 0.02])
    fields = draw.choice([{}, {}, {}, {"model": "absent"}, {"generation": {"top_p": 2.0}}])
    method = draw.choice(["Chat", "ChatStream", "ChatUpload", "ChatUpload"])
    if method == "ChatUpload":
        messages: Iterator[pb.ChatUploadRequest] = upload(CLIP, draw.choice([100, 4096]), **fields)
        return server.stub.ChatUpload(messages, timeout=timeout)
    return getattr(server.stub, method)(request(audio=pb.Audio(data=CLIP), **fields), timeout=timeout)


async def run_to_end(call: Any) -> str:
    """How a call ended: the status' name."""
    try:
        if isinstance(call, grpc.aio.UnaryUnaryCall):
            await call
        else:
            _ = [event async for event in call]
    except grpc.aio.AioRpcError as error:
        # grpc.aio's client made this one itself: its deadline, or a refusal, met it in the middle of a write.
        return "CUT_OFF" if error.details() == "Internal error from Core" else error.code().name
    except asyncio.CancelledError:
        return "CANCELLED"
    return "OK"


async def one_call(server: Harness, draw: random.Random) -> str:
    await asyncio.sleep(draw.random() * 0.5)
    call = start_call(server, draw)
    if draw.random() < 0.4:
        asyncio.get_running_loop().call_later(draw.random() * 0.05, call.cancel)
    return await run_to_end(call)


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_storm_leaves_nothing_behind(seed: int) -> None:
    engine = FakeEngine(step_s=0.005)
    async with serving(engine, max_queued_requests=32) as server:
        ends = await asyncio.gather(*(one_call(server, random.Random(seed + n)) for n in range(NUM_CALLS)))
        await asyncio.wait_for(server.service.wait_idle(), 5.0)
        assert not engine.live
        answer = await server.stub.Chat(request())
        assert answer.text == "Hello, wörld!"
        accepted = server.metrics()["requests_accepted_total"]
    refused = {"DEADLINE_EXCEEDED", "INVALID_ARGUMENT", "NOT_FOUND", "UNAVAILABLE"}
    assert set(ends) <= {"OK", "CANCELLED", "CUT_OFF"} | refused
    assert {"OK", "CANCELLED", "INVALID_ARGUMENT"} <= set(ends)
    assert accepted > NUM_CALLS / 3
