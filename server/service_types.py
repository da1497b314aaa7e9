"""What the service shows of itself, and the little it needs of a decoder. Plain data."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Protocol

from server.types import DecodedAudio

AUDIO_FORMATS = ("wav", "flac", "ogg", "opus", "mp3", "m4a", "aac", "webm")


class Decoder(Protocol):
    """What the service needs of the audio decoder."""

    async def start(self) -> None:
        """Start the worker processes."""

    async def decode(self, data: bytes) -> DecodedAudio:
        """Decode one clip. Raises InvalidAudio or UnsupportedAudio for the clip's faults, DeadlineExceeded
        after a wait that is too long, EngineError if a worker dies, NotReady while there is none.
        """

    async def stop(self) -> None:
        """End the workers. Idempotent."""


class ServiceState(enum.StrEnum):
    """starting -> ready -> draining (not ready, still taking) -> closed (refusing) -> stopped."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    CLOSED = "closed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class Readiness:
    """Answers of the probes. state: starting, ready, draining, failed or stopped."""

    ready: bool
    live: bool
    state: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """What a balancer may weigh. Waiting counts slots that the engine has not begun with."""

    state: str
    num_requests_running: int
    num_requests_waiting: int
    queue_audio_seconds: float
    inflight_bytes: int
    kv_cache_usage: float


@dataclass(frozen=True, slots=True)
class ModelCard:
    """The served model and its limits. created: Unix seconds when it became ready.

    fingerprint: changes with the files that the model was loaded from.
    """

    id: str
    created: int
    max_audio_seconds: float
    min_audio_seconds: float
    max_context_tokens: int
    max_new_tokens: int
    max_prompt_chars: int
    max_upload_bytes: int
    formats: tuple[str, ...]
    merged_prompt: str | None
    random_weights: bool
    fingerprint: str
