"""A clip that was decoded before is not decoded again, and is the same."""

from __future__ import annotations

import numpy as np
import pytest

from server.audio_cache import QUICK_BYTES, CachedDecoder
from server.audio_decode import AudioLimits, decode_audio
from server.engine_clips import ENTRY_BYTES
from server.errors import InvalidAudio
from server.types import DecodedAudio
from tests.audio_samples import wav

LIMITS = AudioLimits(max_seconds=60.0)
SECOND = 16_000 * 4 + ENTRY_BYTES
"""What a second of sound counts."""


class InThisProcess:
    """The real decoding, without its processes; remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[bytes] = []
        self.is_running = False

    async def start(self) -> None:
        self.is_running = True

    async def decode(self, data: bytes) -> DecodedAudio:
        self.asked.append(data)
        return decode_audio(data, LIMITS)

    async def stop(self) -> None:
        self.is_running = False


@pytest.mark.parametrize("seconds", [1.0, 2.5 * QUICK_BYTES / 44_100 / 2])
async def test_the_same_bytes_are_decoded_once(seconds: float) -> None:
    inner = InThisProcess()
    cached = CachedDecoder(inner)
    clip = wav(seconds, 44_100)
    first, again = await cached.decode(clip), await cached.decode(bytes(bytearray(clip)))
    assert len(inner.asked) == 1
    expected = decode_audio(clip, LIMITS)
    assert (again.key, again.info) == (expected.key, expected.info) == (first.key, first.info)
    np.testing.assert_array_equal(again.waveform, expected.waveform)


async def test_one_other_byte_is_another_clip() -> None:
    inner = InThisProcess()
    cached = CachedDecoder(inner)
    clip = bytearray(wav(1.0, 16_000))
    first = await cached.decode(bytes(clip))
    clip[-2] ^= 1
    assert (await cached.decode(bytes(clip))).key != first.key
    assert len(inner.asked) == 2


async def test_what_was_used_last_stays_within_the_bound() -> None:
    inner = InThisProcess()
    cached = CachedDecoder(inner, max_bytes=2 * SECOND)
    a, b, c = (wav(1.0, 16_000, hz=f) for f in (200, 300, 400))
    for clip in (a, b, a, c, a, b):
        await cached.decode(clip)
    assert inner.asked == [a, b, c, b]


async def test_a_clip_longer_than_the_bound_throws_nothing_out() -> None:
    inner = InThisProcess()
    cached = CachedDecoder(inner, max_bytes=SECOND)
    short, long = wav(1.0, 16_000), wav(2.0, 16_000)
    for clip in (short, long, short, long):
        await cached.decode(clip)
    assert inner.asked == [short, long, long]


async def test_a_refusal_is_not_remembered() -> None:
    inner = InThisProcess()
    cached = CachedDecoder(inner)
    for _ in range(2):
        with pytest.raises(InvalidAudio):
            await cached.decode(b"RIFF\0\0\0\0WAVE")
    assert len(inner.asked) == 2


async def test_it_starts_and_stops_with_its_decoder() -> None:
    inner = InThisProcess()
    cached = CachedDecoder(inner)
    await cached.start()
    assert inner.is_running
    clip = wav(1.0, 16_000)
    await cached.decode(clip)
    await cached.stop()
    assert not inner.is_running
    await cached.decode(clip)
    assert len(inner.asked) == 2
