"""Whatever the bytes are, they are decoded whole or refused, and the next clip is decoded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from server.audio_decode import AudioDecoder, AudioLimits
from server.errors import InvalidAudio, UnsupportedAudio
from server.types import DecodedAudio
from tests.audio_samples import FORMATS, noise, wav

LIMITS = AudioLimits(max_seconds=10.0, max_decode_s=5.0)
GOOD = wav(0.2)
CLIPS = {name: encode(noise(0.4, 16_000), 16_000) for name, encode in FORMATS.items()}


class Pool:
    """The real pool behind a plain call, for hypothesis, which knows no event loop."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()
        self.decoder = AudioDecoder(LIMITS, num_workers=1)
        self.runner.run(self.decoder.start())

    def decode(self, data: bytes) -> DecodedAudio | None:
        """The clip, or None if it was refused as it should be."""
        try:
            return self.runner.run(self.decoder.decode(data))
        except (InvalidAudio, UnsupportedAudio):
            return None


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    pool = Pool()
    yield pool
    pool.runner.run(pool.decoder.stop())
    pool.runner.close()


@st.composite
def broken_clips(draw: st.DrawFn) -> bytes:
    """A clip of any format with bytes changed, cut out, doubled, or its end missing."""
    data = bytearray(CLIPS[draw(st.sampled_from(sorted(CLIPS)))])
    for _ in range(draw(st.integers(1, 4))):
        # Half of the changes go to the headers, where they do the most.
        reach = draw(st.sampled_from([min(len(data), 200), len(data)]))
        at = draw(st.integers(0, max(reach - 1, 0)))
        kind = draw(st.sampled_from(["change", "cut", "double", "end"]))
        if kind == "change":
            new = draw(st.binary(min_size=1, max_size=8))
            data[at : at + len(new)] = new
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 300))]
        elif kind == "double":
            data[at:at] = data[at : at + draw(st.integers(1, 300))]
        else:
            del data[at:]
    return bytes(data)


FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def check(audio: DecodedAudio | None) -> None:
    """A clip that is not refused is a good one."""
    if audio is None:
        return
    assert np.isfinite(audio.waveform).all()
    assert LIMITS.min_seconds <= audio.info.duration_s <= LIMITS.max_seconds
    assert abs(len(audio.waveform) - audio.info.duration_s * 16_000) <= 1


@FUZZ
@given(data=broken_clips())
def test_broken_clips(pool: Pool, data: bytes) -> None:
    check(pool.decode(data))
    assert pool.decode(GOOD) is not None


@FUZZ
@given(data=st.binary(max_size=500))
def test_any_bytes(pool: Pool, data: bytes) -> None:
    check(pool.decode(data))
    assert pool.decode(GOOD) is not None


@FUZZ
@given(name=st.sampled_from(sorted(set(CLIPS) - {"adts aac"})), keep=st.floats(0, 0.97))
def test_a_clip_without_its_end_is_never_answered(pool: Pool, name: str, keep: float) -> None:
    assert pool.decode(CLIPS[name][: int(keep * len(CLIPS[name]))]) is None
