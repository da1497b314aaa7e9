"""What a clip may be, and what decoding it may cost."""

from __future__ import annotations

from dataclasses import dataclass

MAX_CHANNELS = 64
"""More than any microphone array in use; every channel costs memory before the mix-down."""


@dataclass(frozen=True, slots=True)
class AudioLimits:
    """Bounds on one clip and on the worker that decodes it.

    max_seconds, min_seconds: length of the clip in its own time. min_sample_rate, max_sample_rate: Hz.
    max_decode_s: wall clock of one decode. max_memory_mb: private writable memory of one worker.
    """

    max_seconds: float
    min_seconds: float = 0.1
    min_sample_rate: int = 8_000
    max_sample_rate: int = 192_000
    max_decode_s: float = 20.0
    max_memory_mb: int = 1024
