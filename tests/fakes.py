"""A scripted engine and decoder for the tests of both transports, and a service built on them."""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
import wave
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from server.errors import InvalidAudio, NotReady, ServerError, UnsupportedAudio
from server.service import SpeechService
from server.settings import Settings
from server.types import (
    Accepted,
    AudioInfo,
    DecodedAudio,
    Delta,
    EncoderRun,
    EngineState,
    EngineStats,
    EngineTimings,
    Event,
    Failed,
    Finished,
    FinishReason,
    GenerateRequest,
    Health,
    ModelInfo,
    Stage,
    StageChanged,
    Usage,
)
from server.warmup import tone_wav

MODEL_NAME = "fake-wavllm"
PROMPT_TOKENS = 11
AUDIO_TOKENS = 7


@dataclass(eq=False)
class FakeEngine:
    """Answers every request with `pieces`, one token each.

    refuse: Failed as the first and only event. fail_after: Failed with `error` after so many pieces.
    gates: the request waits for `gates[point]` if it is there; points are "accept", "start" (still
    queued), "encode", "prefill", and 0, 1, ... before piece i. aborted: ids whose iterator was closed
    early. abort_calls: ids that `abort` was given. step_s: pause before each piece.
    """

    pieces: tuple[str, ...] = ("Hello", ", ", "wörld", "!")
    finish_reason: FinishReason = "stop"
    refuse: ServerError | None = None
    error: ServerError | None = None
    fail_after: int = 0
    step_s: float = 0.0
    gates: dict[str | int, asyncio.Event] = field(default_factory=dict)
    load_gate: asyncio.Event | None = None
    load_error: ServerError | None = None
    state: EngineState = EngineState.STARTING
    heartbeat_age_s: float = 0.0
    lost_s: float = 0.0
    requests: list[GenerateRequest] = field(default_factory=list)
    live: set[str] = field(default_factory=set)
    aborted: list[str] = field(default_factory=list)
    abort_calls: list[str] = field(default_factory=list)
    encoder_runs: list[EncoderRun] = field(default_factory=list)
    stats_now: EngineStats = field(default_factory=EngineStats)
    model: ModelInfo = field(
        default_factory=lambda: ModelInfo(MODEL_NAME, 2048, 60.0, 512, 1000, "float32", "cpu")
    )

    @property
    def info(self) -> ModelInfo:
        if self.state is EngineState.STARTING:
            raise NotReady("The model is loading.")
        return self.model

    async def start(self) -> None:
        if self.load_gate is not None:
            await self.load_gate.wait()
        if self.load_error is not None:
            raise self.load_error
        self.state = EngineState.READY

    async def stop(self) -> None:
        self.state = EngineState.STOPPED

    async def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        self.requests.append(request)
        if self.refuse is not None:
            yield Failed(request.request_id, self.refuse)
            return
        self.live.add(request.request_id)
        ended = False
        try:
            async for event in self._script(request):
                ended = isinstance(event, Finished | Failed)
                if ended:
                    self.live.discard(request.request_id)
                yield event
        finally:
            self.live.discard(request.request_id)
            if not ended:
                self.aborted.append(request.request_id)

    async def _script(self, request: GenerateRequest) -> AsyncIterator[Event]:
        request_id, start = request.request_id, time.monotonic()
        audio_tokens = AUDIO_TOKENS if request.waveform is not None else 0
        await self._pass("accept")
        yield Accepted(request_id, len(self.live) - 1, PROMPT_TOKENS + audio_tokens, audio_tokens)
        for point, stage in (
            ("start", Stage.ENCODING),
            ("encode", Stage.PREFILLING),
            ("prefill", Stage.GENERATING),
        ):
            await self._pass(point)
            yield StageChanged(request_id, stage)
        pieces = self.pieces[: request.sampling.max_tokens]
        for index, piece in enumerate(pieces):
            await self._pass(index)
            if self.error is not None and index == self.fail_after:
                yield Failed(request_id, self.error)
                return
            yield Delta(request_id, piece, (100 + index,))
        reason = self.finish_reason if len(pieces) == len(self.pieces) else "length"
        usage = Usage(PROMPT_TOKENS + audio_tokens, len(pieces), audio_tokens, 0)
        total_ms = (time.monotonic() - start) * 1e3
        yield Finished(request_id, reason, usage, EngineTimings(0.5, 0.25, total_ms))

    async def _pass(self, point: str | int) -> None:
        if isinstance(point, int) and self.step_s:
            await asyncio.sleep(self.step_s)
        if point in self.gates:
            await self.gates[point].wait()

    async def abort(self, request_id: str) -> None:
        self.live.discard(request_id)
        self.abort_calls.append(request_id)

    def health(self) -> Health:
        return Health(self.state, self.heartbeat_age_s, lost_s=self.lost_s)

    def stats(self) -> EngineStats:
        return self.stats_now

    def take_encoder_runs(self) -> tuple[EncoderRun, ...]:
        runs, self.encoder_runs = tuple(self.encoder_runs), []
        return runs


@dataclass(eq=False)
class FakeDecoder:
    """Reads WAV in this process; bytes that are none are refused. gate: holds every decode back."""

    max_audio_s: float = 60.0
    gate: asyncio.Event | None = None
    num_decoded: int = 0
    running: bool = False

    async def start(self) -> None:
        self.running = True

    async def stop(self) -> None:
        self.running = False

    async def decode(self, data: bytes) -> DecodedAudio:
        if self.gate is not None:
            await self.gate.wait()
        self.num_decoded += 1
        if not data.startswith(b"RIFF"):
            raise UnsupportedAudio("The bytes are not audio that is known here (detected: unknown).")
        try:
            with wave.open(io.BytesIO(data)) as file:
                rate, channels = file.getframerate(), file.getnchannels()
                pcm = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
        except (wave.Error, EOFError) as error:
            raise InvalidAudio("The WAV file is corrupt.") from error
        waveform = pcm.reshape(-1, channels).mean(axis=1).astype(np.float32) / 32768
        info = AudioInfo(len(waveform) / rate, rate, channels)
        return DecodedAudio(waveform, hashlib.sha256(waveform.tobytes()).digest(), info)


def make_settings(**overrides: Any) -> Settings:
    """Settings for tests: free ports, and everything else as shipped unless given."""
    return Settings(**{"http_port": 0, "grpc_port": 0, "metrics_port": 0, "host": "127.0.0.1", **overrides})


def make_service(
    engine: FakeEngine | None = None,
    decoder: FakeDecoder | None = None,
    **overrides: Any,
) -> SpeechService:
    """A service over the fakes; call `await service.start()` to make it ready."""
    used = decoder or FakeDecoder()

    def make_decoder(max_audio_s: float) -> FakeDecoder:
        used.max_audio_s = max_audio_s
        return used

    return SpeechService(engine or FakeEngine(), make_decoder, make_settings(**overrides))


def wav_clip(seconds: float = 0.5) -> bytes:
    """A small valid clip: 16 kHz mono WAV."""
    return tone_wav(seconds)


async def eventually(condition: Callable[[], bool], timeout_s: float = 2.0) -> None:
    """Wait until the condition holds. Raises AssertionError when it does not in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("the condition did not come true in time")
        await asyncio.sleep(0.002)
