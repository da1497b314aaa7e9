"""What the engine's two ends remember of the clips that crossed the pipe."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.engine_clips import ENTRY_BYTES, ClipReceiver, ClipSender
from server.types import GenerateRequest, SamplingParams

LENGTHS = [0, 1, 100, 250, 700, 7000]
"""Samples of the clips by number; the last is more than both ends keep."""
MAX_BYTES = 4 * 1000 + 4 * ENTRY_BYTES


def request(clip: int | None, request_id: str = "a") -> GenerateRequest:
    """A question about a clip: made anew every time, as decoding does."""
    if clip is None:
        return GenerateRequest(request_id, "p", None, b"", SamplingParams())
    waveform = np.full(LENGTHS[clip], clip, np.float32)
    return GenerateRequest(request_id, "p", waveform, bytes([clip]) * 32, SamplingParams())


def assert_same(one: GenerateRequest, other: GenerateRequest) -> None:
    assert (one.request_id, one.audio_key) == (other.request_id, other.audio_key)
    np.testing.assert_equal(one.waveform, other.waveform)


@given(st.lists(st.one_of(st.none(), st.integers(0, len(LENGTHS) - 1)), max_size=60))
def test_every_request_arrives_as_it_was_submitted(clips: list[int | None]) -> None:
    sender, receiver = ClipSender(MAX_BYTES), ClipReceiver(MAX_BYTES)
    for number, clip in enumerate(clips):
        submitted = request(clip, str(number))
        assert_same(receiver.restore(sender.shorten(submitted)), submitted)


def test_a_clip_is_sent_once_while_it_is_remembered() -> None:
    sender = ClipSender(2 * (1000 + ENTRY_BYTES))
    sent = [sender.shorten(request(clip)).waveform is not None for clip in (3, 3, 2, 3, 1, 2, 3)]
    assert sent == [True, False, True, False, True, True, True]  # 1 takes 2's place, then 2 takes 3's


def test_a_clip_that_is_too_long_to_keep_is_sent_every_time() -> None:
    sender, receiver = ClipSender(MAX_BYTES), ClipReceiver(MAX_BYTES)
    for _ in range(2):
        message = sender.shorten(request(5))
        assert message.waveform is not None
        assert_same(receiver.restore(message), request(5))


def test_a_request_without_a_key_is_left_alone() -> None:
    waveform = np.ones(3, np.float32)
    keyless = GenerateRequest("a", "p", waveform, b"", SamplingParams())
    sender, receiver = ClipSender(), ClipReceiver()
    for _ in range(2):
        assert receiver.restore(sender.shorten(keyless)) is keyless


def test_a_clip_that_never_came_is_an_error() -> None:
    with pytest.raises(KeyError):
        ClipReceiver().restore(GenerateRequest("a", "p", None, b"k" * 32, SamplingParams()))
