"""Plain data that crosses the layers and the process boundary. No torch, no asyncio loop, no sockets.

Times are `time.monotonic()` seconds, which Linux keeps equal across processes of one machine;
durations end in `_s` (seconds) or `_ms` (milliseconds).
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from server.errors import ServerError

FinishReason = Literal["stop", "length"]
MAX_AUDIO_SECONDS = 120
"""Longest clip where neither the settings nor the model's room say less."""


@dataclass(frozen=True, slots=True)
class EngineDefaults:
    """What holds for the fields of these names in `EngineConfig` where they are left open."""

    max_batch_size: int
    max_batch_tokens: int
    kv_cache_fraction: float
    encoder_step_ms: float


ON_CPU = EngineDefaults(32, 512, 0.3, 100.0)
ON_GPU = EngineDefaults(128, 2048, 0.85, 10.0)


class Stage(enum.StrEnum):
    """Where a request is; the label of `requests_cancelled_total`."""

    RECEIVING = "receiving"
    DECODING = "decoding"
    QUEUED = "queued"
    ENCODING = "encoding"
    PREFILLING = "prefilling"
    GENERATING = "generating"


class EngineState(enum.StrEnum):
    """Life cycle of an engine: starting -> ready -> (failed -> starting) -> stopped."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class AudioInfo:
    """A clip as it was received: length in seconds, sample rate in Hz, number of channels."""

    duration_s: float
    sample_rate: int
    channels: int


@dataclass(frozen=True, slots=True)
class DecodedAudio:
    """A decoded clip.

    waveform: [T] float32, 16 kHz mono. key: 32 bytes, SHA-256 of the waveform's bytes.
    """

    waveform: npt.NDArray[np.float32]
    key: bytes
    info: AudioInfo


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How answer tokens are chosen. temperature 0 is greedy; top_k 0 and top_p 1 are off.

    seed: draws depend on (seed, position) alone; None lets the engine pick one.
    stop: the answer ends before the first of these strings.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One request as the engine takes it.

    request_id: unique among live requests, made by the server, never the client's own.
    waveform: [T] float32 at 16 kHz, or None for a question without audio (LoRA off).
    audio_key: 32 bytes, SHA-256 of the waveform's bytes; b"" without audio.
    system: replaces the template's system text; None keeps it.
    deadline: monotonic time by which the request must have ended.
    queue_deadline: monotonic time by which its first computation must have started.
    """

    request_id: str
    prompt: str
    waveform: npt.NDArray[np.float32] | None
    audio_key: bytes
    sampling: SamplingParams
    system: str | None = None
    deadline: float = float("inf")
    queue_deadline: float = float("inf")


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request. completion_tokens leaves EOS out."""

    prompt_tokens: int
    completion_tokens: int
    audio_tokens: int
    cached_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class EngineTimings:
    """Milliseconds spent inside the engine; encode_ms is 0 on an embedding-cache hit.

    queue_ms: from submission until the first computation for this request. total_ms: until the end.
    """

    queue_ms: float
    encode_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class Accepted:
    """First event of every accepted request. queue_position: requests waiting ahead of it."""

    request_id: str
    queue_position: int
    prompt_tokens: int
    audio_tokens: int


@dataclass(frozen=True, slots=True)
class StageChanged:
    """The request entered this stage; the first one ends its time in the queue."""

    request_id: str
    stage: Stage


@dataclass(frozen=True, slots=True)
class Delta:
    """New answer tokens and the text that became final with them. Either may be empty."""

    request_id: str
    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """Last event of a request that was answered."""

    request_id: str
    finish_reason: FinishReason
    usage: Usage
    timings: EngineTimings


@dataclass(frozen=True, slots=True)
class Failed:
    """Last event of a request that was not answered (also: refused at submission)."""

    request_id: str
    error: ServerError


Event = Accepted | StageChanged | Delta | Finished | Failed


@dataclass(frozen=True, slots=True)
class EncoderRun:
    """One encoder pass: which branch ("whisper" or "wavlm"), its seconds, clips in the batch."""

    encoder: str
    seconds: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class EngineStats:
    """Gauges and counters (cumulative since the engine started) of one engine.

    kv_cache_usage: share of pages held by live sequences; kv_cache_cached: share of pages kept for reuse.
    """

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    queue_audio_seconds: float = 0.0
    kv_cache_usage: float = 0.0
    kv_cache_cached: float = 0.0
    encoder_cache_hits: int = 0
    encoder_cache_misses: int = 0
    encoder_cache_evictions: int = 0
    encoder_cache_bytes: int = 0
    prompt_cache_hits: int = 0
    prompt_cache_misses: int = 0
    num_preemptions: int = 0
    num_steps: int = 0


@dataclass(frozen=True, slots=True)
class StepOutput:
    """All that leaves the engine after one step, as one message."""

    events: tuple[Event, ...] = ()
    stats: EngineStats = field(default_factory=EngineStats)
    encoder_runs: tuple[EncoderRun, ...] = ()


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What clients and limits need to know of the loaded model.

    max_audio_seconds: longest clip that leaves room for an answer. max_context_tokens: the position table.
    random_weights: the directory says that nobody trained it.
    merged_prompt: the only instruction this deployment answers, or None.
    fingerprint: changes with the files that the model was loaded from.
    """

    name: str
    max_context_tokens: int
    max_audio_seconds: float
    vocab_size: int
    num_parameters: int
    dtype: str
    device: str
    random_weights: bool = False
    merged_prompt: str | None = None
    fingerprint: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """State of an engine and seconds since its thread last gave a sign of life.

    lost_s: seconds since an engine that had been ready was lost; 0 while it is ready, and before it was.
    """

    state: EngineState
    heartbeat_age_s: float
    detail: str = ""
    lost_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What an engine is built from; None means: measured from the model and the device's memory.

    model_dir: a checkpoint directory. device: "auto", "cpu", "cuda" or "cuda:N". dtype: "auto" (float32 on a
    CPU, bfloat16 on CUDA), "float32", "bfloat16", "float16" or "float64".
    merge_prompt: merge the LoRA for this one instruction. max_batch_size: sequences that generate at once.
    max_batch_tokens: tokens of one forward. num_pages: KV pages; overrides kv_cache_fraction, the share of
    the device's free memory given to KV pages. encoder_step_ms: what encoding and prefilling may
    add to the time between two decode steps. encoder_cache_mb: bound of the audio-embedding cache, 0 turns
    it off.
    """

    model_dir: Path
    served_name: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    merge_prompt: str | None = None
    max_batch_size: int | None = None
    max_batch_tokens: int | None = None
    kv_cache_fraction: float | None = None
    num_pages: int | None = None
    page_size: int = 16
    encoder_step_ms: float | None = None
    encoder_cache_mb: float = 256.0
    prefix_cache: bool = True
    num_threads: int | None = None


class Engine(Protocol):
    """What the service needs of an engine. `LocalEngine` and `EngineProcess` implement it."""

    @property
    def info(self) -> ModelInfo:
        """Facts of the loaded model. Raises NotReady before it is loaded."""

    async def start(self) -> None:
        """Load and warm up; returns when ready. Raises EngineError if the model cannot be loaded."""

    async def stop(self) -> None:
        """End every live request with an error, then free everything. Idempotent."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[Event]:
        """Submit; yields Accepted, then stages and deltas, and last one Finished or Failed.

        Raises nothing for bad requests: a refusal is a first and only `Failed`. Closing the iterator
        (`aclose`, or cancelling its task) aborts the request within one step.
        """

    async def abort(self, request_id: str) -> None:
        """End a request early and free what it holds; unknown ids are ignored."""

    def health(self) -> Health:
        """Cheap; never blocks."""

    def stats(self) -> EngineStats:
        """The newest snapshot; never blocks."""

    def take_encoder_runs(self) -> tuple[EncoderRun, ...]:
        """Encoder passes since the last call, for the histograms."""
