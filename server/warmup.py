"""A clip made from nothing, to warm up the decoder before the first client comes."""

from __future__ import annotations

import io
import math
import struct
import wave

RATE = 16_000


def tone_wav(seconds: float) -> bytes:
    """A WAV file with a quiet 440 Hz tone: 16 kHz, mono, 16 bit."""
    samples = [int(3000 * math.sin(2 * math.pi * 440 * i / RATE)) for i in range(int(seconds * RATE))]
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))
    return buffer.getvalue()
