"""An upload is forgotten when the engine has its waveform: answers may take minutes, and many run at once."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import gc
import io
import json
import tracemalloc
import wave
import weakref
from collections.abc import AsyncIterator, Iterator

import grpc_harness
import numpy as np
import pytest
from fakes import FakeEngine, eventually, make_service
from http_harness import CHAT, live_server, post_head

from server.engine.mailbox import Mailboxes
from server.pb import speech_pb2 as pb
from server.types import Accepted, GenerateRequest, SamplingParams

MIB = 2**20
UPLOAD_MIB = 8
WAVEFORM_MIB = UPLOAD_MIB / 8
"""The clip's sixteen channels of 16 bits become one of 32: what the fake engine keeps."""


def wide_clip() -> bytes:
    """A WAV file of 8 MiB with little sound in it."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(16)
        file.setsampwidth(2)
        file.setframerate(48000)
        file.writeframes(bytes(UPLOAD_MIB * MIB))
    return out.getvalue()


@pytest.fixture
def traced() -> Iterator[None]:
    """Memory is counted from here on."""
    tracemalloc.start()
    yield
    tracemalloc.stop()


async def held_mib() -> float:
    """What is allocated once everything that can end has ended: on a busy machine that takes a while."""
    held = float("inf")
    for _ in range(40):
        await asyncio.sleep(0.05)
        gc.collect()
        held = tracemalloc.get_traced_memory()[0] / MIB
        if held < WAVEFORM_MIB + 2:
            break
    return held


@contextlib.asynccontextmanager
async def slow_engine() -> AsyncIterator[FakeEngine]:
    """It accepts, and answers only at the end of the block."""
    gate = asyncio.Event()
    yield FakeEngine(gates={0: gate})
    gate.set()


def json_post() -> bytes:
    body = {"prompt": "What is said?", "audio": {"data": base64.b64encode(wide_clip()).decode()}}
    data = json.dumps(body).encode()
    return post_head(len(data)) + data


def chat_completion_post() -> bytes:
    audio = {"data": base64.b64encode(wide_clip()).decode(), "format": "wav"}
    content = [{"type": "input_audio", "input_audio": audio}]
    data = json.dumps({"messages": [{"role": "user", "content": content}]}).encode()
    return post_head(len(data), path="/v1/chat/completions") + data


def form_post() -> bytes:
    return form_of(b'--B\r\ncontent-disposition: form-data; name="prompt"\r\n\r\nWhat?\r\n', CHAT)


def transcription_post() -> bytes:
    return form_of(b"", "/v1/audio/transcriptions")


def form_of(parts: bytes, path: str) -> bytes:
    parts += b'--B\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n' + wide_clip()
    parts += b"\r\n--B--\r\n"
    return post_head(len(parts), path=path, kind="multipart/form-data; boundary=B") + parts


@pytest.mark.parametrize("make", [json_post, form_post, chat_completion_post, transcription_post])
async def test_http(make, request: pytest.FixtureRequest) -> None:
    sent = make()
    async with slow_engine() as engine, live_server(make_service(engine)) as server:
        client = await server.connect()
        request.getfixturevalue("traced")
        await client.send(sent)
        await eventually(lambda: bool(engine.live), 10.0)
        assert await held_mib() < WAVEFORM_MIB + 2


async def test_grpc(request: pytest.FixtureRequest) -> None:
    sent = pb.ChatRequest(prompt="What is said?", audio=pb.Audio(data=wide_clip()))
    raw = sent.SerializeToString()
    async with slow_engine() as engine, grpc_harness.serving(engine) as harness:
        # Bytes that are there already: what the client makes of them would be counted as the server's.
        method = harness.channel.unary_stream("/wavllm.v1.SpeechChat/ChatStream")
        request.getfixturevalue("traced")
        call = method(raw)
        await eventually(lambda: bool(engine.live), 10.0)
        held = await held_mib()
        call.cancel()
    assert held < WAVEFORM_MIB + 2


async def test_the_mailboxes_do_not_keep_the_waveform() -> None:
    boxes = Mailboxes()
    waveform = np.zeros(8000, np.float32)
    one = GenerateRequest("one", "What?", waveform, b"key", SamplingParams())
    stream = boxes.stream(one, lambda _: boxes.deliver([Accepted("one", 0, 1, 0)]), lambda _: None)
    held = weakref.ref(waveform)
    del one, waveform
    await anext(stream)
    assert held() is None
    await stream.aclose()
