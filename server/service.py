"""The one use case under both transports: admit, validate, decode, submit, stream.

    with service.reserve(num_bytes=n, api_key=key, transport="http") as reservation:   # before the body
        audio = await receive()
        stream = await service.chat(reservation, ChatCommand(prompt, audio))           # refusals raise here
    async with stream:
        async for delta in stream: ...

Every reservation ends in exactly one outcome, on every path. Event-loop confined.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from server.admission import KeyRing, Ledger, LedgerLimits, RateLimiter, Slot
from server.chat_stream import ChatStream, EngineCall, Timings
from server.errors import (
    DeadlineExceeded,
    InvalidAudio,
    NotReady,
    PayloadTooLarge,
    ServerError,
)
from server.metrics import Metrics, Outcome, Snapshot
from server.reservation import Reservation
from server.service_types import (
    AUDIO_FORMATS,
    Decoder,
    Load,
    ModelCard,
    Readiness,
    ServiceState,
)
from server.settings import Settings
from server.types import (
    AudioInfo,
    DecodedAudio,
    Engine,
    EngineState,
    GenerateRequest,
    Stage,
)
from server.validation import ChatCommand, check_command, sampling_params, unknown_model
from server.warmup import tone_wav

__all__ = [
    "AUDIO_FORMATS",
    "ChatCommand",
    "ChatStream",
    "Decoder",
    "Load",
    "ModelCard",
    "Outcome",
    "Readiness",
    "Reservation",
    "ServiceState",
    "SpeechService",
    "Timings",
]

logger = logging.getLogger(__name__)

LOADING_RETRY_S = 5.0
LOST_ENGINE_S = 600.0
LOST_ENGINE_LOADS = 10
"""An engine that was lost gets ten times what its first load took, at least ten minutes, to be ready again.
After that the whole process is to be started anew."""


class SpeechService:
    """Admission, validation, decoding and the engine behind one call.

    make_decoder: builds the decoder for clips of at most so many seconds, once the model is known.
    """

    def __init__(
        self,
        engine: Engine,
        make_decoder: Callable[[float], Decoder],
        settings: Settings,
        metrics: Metrics | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = metrics or Metrics()
        self.ledger = Ledger(
            LedgerLimits(
                settings.max_queued_requests, settings.max_queued_audio_seconds, settings.max_inflight_bytes
            )
        )
        self._engine = engine
        self._make_decoder = make_decoder
        self._decoder: Decoder | None = None
        self._keys = KeyRing(settings.load_api_keys())
        self._rate = RateLimiter(settings.rate_limit) if settings.rate_limit else None
        self._state = ServiceState.STARTING
        self._ready_at = 0
        self._lost_limit_s = LOST_ENGINE_S
        self._open: set[Reservation] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self.metrics.watch(self._snapshot, engine.take_encoder_runs)

    async def start(self) -> None:
        """Load the model, start the decoder, warm both up. Raises EngineError if the model cannot load."""
        began = time.monotonic()
        await self._engine.start()
        self._lost_limit_s = max(LOST_ENGINE_S, LOST_ENGINE_LOADS * (time.monotonic() - began))
        self._decoder = self._make_decoder(self.max_audio_s)
        await self._decoder.start()
        await self._decoder.decode(tone_wav(max(1.0, 2 * self.settings.min_audio_seconds)))
        self._ready_at = int(time.time())
        if self._state is ServiceState.STARTING:
            self._state = ServiceState.READY

    def drain(self) -> None:
        """Fail readiness; requests are still taken."""
        if self._state in (ServiceState.STARTING, ServiceState.READY):
            self._state = ServiceState.DRAINING

    def close(self) -> None:
        """Refuse new requests from now on; accepted ones go on."""
        if self._state is not ServiceState.STOPPED:
            self._state = ServiceState.CLOSED

    async def wait_idle(self) -> None:
        """Return when no request holds a slot."""
        await self._idle.wait()

    async def stop(self) -> None:
        """End what is left with a clean error, then stop engine and decoder. Idempotent."""
        self.close()
        for reservation in tuple(self._open):
            reservation.expire(NotReady("The server is shutting down.", retry_after_s=1.0))
        if self._tasks:
            await asyncio.wait(self._tasks)
        parts = (self._engine, self._decoder) if self._decoder is not None else (self._engine,)
        await asyncio.gather(*(part.stop() for part in parts))
        self._state = ServiceState.STOPPED

    @property
    def max_audio_s(self) -> float:
        """Longest clip in seconds. Raises NotReady before the model is loaded."""
        return self.settings.audio_limit_s(self._engine.info.max_audio_seconds)

    @property
    def model_name(self) -> str:
        """Name of the served model. Raises NotReady before it is loaded."""
        return self._engine.info.name

    @property
    def is_open_to_all(self) -> bool:
        """Whether no API key is needed."""
        return self._keys.is_open

    def authenticate(self, api_key: str | None) -> int:
        """Index of the client's key. Raises AuthenticationError."""
        return self._keys.identify(api_key)

    def reserve(self, *, num_bytes: int, api_key: str | None, transport: str) -> Reservation:
        """Take a slot for a request of this many bytes, before any of them is read.

        Raises AuthenticationError, RateLimited, NotReady, PayloadTooLarge or Overloaded; each counts as
        rejected. Does no I/O.
        """
        try:
            slot = self._admit(num_bytes, api_key)
        except ServerError as error:
            self.metrics.rejected(error.code)
            raise
        reservation = Reservation(
            self.ledger,
            slot,
            self.metrics,
            transport=transport,
            timeout_s=self.settings.request_timeout,
            on_finish=self._forget,
        )
        self._open.add(reservation)
        self._idle.clear()
        return reservation

    def check(self, command: ChatCommand) -> None:
        """Raise what `chat` would of the fields alone; for a command whose clip is still to come."""
        check_command(command, self.settings, self._engine.info)

    async def chat(self, reservation: Reservation, command: ChatCommand) -> ChatStream:
        """Validate, decode and submit; returns once the engine has accepted the request.

        Raises a ServerError for every refusal. The reservation is finished on every way out by an exception.
        """
        with reservation.failing():
            self.check(command)
            reservation.limit_time(command.timeout_s)
            async with reservation.before_deadline():
                audio, decode_s = await self._decode(reservation, command.audio)
            return await self._submit(reservation, command, audio, decode_s)

    def readiness(self) -> Readiness:
        """State of the server and its engine; a full queue fails neither answer."""
        health = self._engine.health()
        hung = health.state is EngineState.READY and health.heartbeat_age_s >= self.settings.engine_timeout
        live = not hung and health.lost_s < self._lost_limit_s
        ready = self._state is ServiceState.READY and health.state is EngineState.READY and live
        return Readiness(ready, live, self._public_state(), health.detail)

    def load(self) -> Load:
        """A snapshot of what runs and waits."""
        ledger, stats = self.ledger, self._engine.stats()
        return Load(
            state=self._public_state(),
            num_requests_running=ledger.num_open - ledger.num_waiting,
            num_requests_waiting=ledger.num_waiting,
            queue_audio_seconds=ledger.waiting_audio_s,
            inflight_bytes=ledger.num_bytes,
            kv_cache_usage=stats.kv_cache_usage,
        )

    def models(self) -> tuple[ModelCard, ...]:
        """The served model. Raises NotReady before it is loaded."""
        info, settings = self._engine.info, self.settings
        card = ModelCard(
            id=info.name,
            created=self._ready_at,
            max_audio_seconds=self.max_audio_s,
            min_audio_seconds=settings.min_audio_seconds,
            max_context_tokens=info.max_context_tokens,
            max_new_tokens=settings.max_new_tokens,
            max_prompt_chars=settings.max_prompt_chars,
            max_upload_bytes=settings.max_upload_bytes,
            formats=AUDIO_FORMATS,
            merged_prompt=info.merged_prompt,
            random_weights=info.random_weights,
            fingerprint=info.fingerprint,
        )
        return (card,)

    def model(self, name: str) -> ModelCard:
        """One served model. Raises ModelNotFound, and NotReady before it is loaded."""
        for card in self.models():
            if card.id == name:
                return card
        raise unknown_model()

    def _admit(self, num_bytes: int, api_key: str | None) -> Slot:
        client = self._keys.identify(api_key)
        if self._rate is not None:
            self._rate.check(client)
        self._check_open()
        if num_bytes > self.settings.max_body_bytes:
            raise PayloadTooLarge(
                f"The body has {num_bytes} bytes; at most {self.settings.max_body_bytes} are taken."
            )
        return self.ledger.take(num_bytes)

    def _check_open(self) -> None:
        if self._state in (ServiceState.CLOSED, ServiceState.STOPPED):
            raise NotReady("The server is shutting down.", retry_after_s=1.0)
        if self._decoder is None or self._state is ServiceState.STARTING:
            raise NotReady("The model is loading.", retry_after_s=LOADING_RETRY_S)
        if self._engine.health().state is not EngineState.READY:
            raise NotReady("The engine is being started again.", retry_after_s=LOADING_RETRY_S)

    async def _submit(
        self, reservation: Reservation, command: ChatCommand, audio: DecodedAudio | None, decode_s: float
    ) -> ChatStream:
        """Hand the request to the engine; the stream keeps the deadline from here on."""
        if command.timeout_s is not None:
            self._check_wait(reservation)
        reservation.enter_queue()
        request = self._engine_request(reservation, command, audio)
        call = EngineCall(self._engine, request.request_id, self._engine.generate(request))
        stream = ChatStream(call, reservation, self.metrics, audio.info if audio else None, decode_s)
        reservation.follow_with(stream.done)
        self._tasks.add(stream.done)
        stream.done.add_done_callback(self._tasks.discard)
        await stream.wait_accepted()
        return stream

    async def _decode(
        self, reservation: Reservation, data: bytes | None
    ) -> tuple[DecodedAudio | None, float]:
        """Decode the clip, and count its seconds and its waveform's bytes instead of the body's."""
        if data is None:
            reservation.resize_bytes(0)
            return None, 0.0
        reservation.resize_bytes(len(data))
        reservation.stage = Stage.DECODING
        if self._decoder is None:
            raise NotReady("The model is loading.", retry_after_s=LOADING_RETRY_S)
        start = time.monotonic()
        audio = await self._decoder.decode(data)
        seconds = time.monotonic() - start
        self._check_duration(audio.info)
        reservation.audio_s = audio.info.duration_s
        self.metrics.decoded(seconds=seconds, audio_s=audio.info.duration_s)
        reservation.resize_bytes(audio.waveform.nbytes)
        reservation.reserve_audio(audio.info.duration_s)
        return audio, seconds

    def _check_duration(self, info: AudioInfo) -> None:
        """The decoder refuses these early; here they are refused for certain."""
        if not self.settings.min_audio_seconds <= info.duration_s <= self.max_audio_s:
            raise InvalidAudio(
                f"The audio is {info.duration_s:.6g} s long; {self.settings.min_audio_seconds:g} to "
                f"{self.max_audio_s:g} s are taken."
            )

    def _check_wait(self, reservation: Reservation) -> None:
        """Refuse at once what would outlast the client's own deadline."""
        if time.monotonic() + self.ledger.expected_wait_s > reservation.deadline:
            raise DeadlineExceeded("The queue is longer than the request's deadline.")

    def _engine_request(
        self, reservation: Reservation, command: ChatCommand, audio: DecodedAudio | None
    ) -> GenerateRequest:
        queue_deadline = time.monotonic() + self.settings.queue_timeout
        return GenerateRequest(
            request_id=reservation.request_id,
            prompt=command.prompt,
            waveform=audio.waveform if audio else None,
            audio_key=audio.key if audio else b"",
            sampling=sampling_params(command, self.settings),
            system=command.system,
            deadline=reservation.deadline,
            queue_deadline=min(queue_deadline, reservation.deadline),
        )

    def _forget(self, reservation: Reservation) -> None:
        self._open.discard(reservation)
        if not self._open:
            self._idle.set()

    def _public_state(self) -> str:
        if self._state is ServiceState.CLOSED:
            return ServiceState.DRAINING.value
        if self._state is ServiceState.READY and self._engine.health().state is not EngineState.READY:
            return EngineState.FAILED.value
        return self._state.value

    def _snapshot(self) -> Snapshot:
        ledger = self.ledger
        return Snapshot(
            num_running=ledger.num_open - ledger.num_waiting,
            num_waiting=ledger.num_waiting,
            queue_audio_s=ledger.waiting_audio_s,
            state=self._public_state(),
            engine=self._engine.stats(),
        )
