"""What is refused for its length, and which field the refusal names."""

from __future__ import annotations

import numpy as np
import pytest

from model.tokenizer import Tokenizer
from server.engine.intake import Intake
from server.errors import ContextLengthExceeded
from server.types import GenerateRequest, SamplingParams
from tests.model.random_weights import small_config

LONG = "the quick brown fox " * 40


@pytest.mark.parametrize(
    ("system", "prompt", "seconds", "param"),
    [
        (None, LONG, 0.5, "prompt"),
        ("Be brief.", LONG, 0.5, "prompt"),
        (LONG, "What?", 0.5, "system"),
        (None, LONG, None, "prompt"),
        ("Be brief.", LONG, None, "prompt"),
        (LONG, "What?", None, "system"),
        (None, "What?", 30, "audio"),
        ("Be brief.", "What?", 30, "audio"),
    ],
)
def test_the_longest_part_is_named(
    tokenizer: Tokenizer, system: str | None, prompt: str, seconds: float | None, param: str
) -> None:
    intake = Intake(small_config(), tokenizer, 256, None)
    waveform = None if seconds is None else np.zeros(int(seconds * 16_000), np.float32)
    request = GenerateRequest("r", prompt, waveform, b"key", SamplingParams(4), system=system)
    with pytest.raises(ContextLengthExceeded, match="no room") as caught:
        intake.sequence(request)
    assert caught.value.param == param
    assert ("system text" in str(caught.value)) == (system is not None)
    assert ("clip" in str(caught.value)) == (seconds is not None)
