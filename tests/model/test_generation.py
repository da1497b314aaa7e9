"""`generation` in config.json: an answer that repeats itself ends, where these weights ask for it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint import load_model
from model.config import ConfigError, GenerationConfig, SpeechLLMConfig
from model.sampling import is_looping
from model.tiny import make_tiny
from server.engine.build import Sizes, assemble
from server.types import Delta, EngineConfig, Finished, GenerateRequest, SamplingParams

THRICE = GenerationConfig(max_repeats=3, longest_repeat=4)


@pytest.mark.parametrize(
    ("tokens", "looping"),
    [
        ([], False),
        ([7, 7], False),
        ([7, 7, 7], True),
        ([1, 7, 7, 7], True),
        ([7, 7, 7, 1], False),
        ([1, 2, 1, 2, 1], False),
        ([1, 2, 1, 2, 1, 2], True),
        ([9, 2, 1, 2, 1, 2], False),
        ([1, 2, 3, 4] * 3, True),
        ([1, 2, 3, 4, 5] * 3, False),  # longer than what is counted
    ],
)
def test_what_counts_as_a_loop(tokens: list[int], looping: bool) -> None:
    assert is_looping(tokens, THRICE) is looping
    assert not is_looping(tokens, GenerationConfig())


@given(st.lists(st.integers(0, 2), max_size=24), st.integers(2, 4), st.integers(1, 6))
def test_loops_are_found_as_by_comparing_every_copy(tokens: list[int], times: int, longest: int) -> None:
    def copies(size: int) -> bool:
        parts = [tokens[len(tokens) - size * (i + 1) : len(tokens) - size * i] for i in range(times)]
        return len(tokens) >= size * times and all(part == parts[0] for part in parts)

    expected = any(copies(size) for size in range(1, longest + 1))
    assert is_looping(tokens, GenerationConfig(times, longest)) is expected


@pytest.mark.parametrize(("rule", "reason", "length"), [(THRICE, "stop", 3), (None, "length", 20)])
def test_a_loop_ends_the_answer_of_these_weights_alone(
    tmp_path: Path, rule: GenerationConfig | None, reason: str, length: int
) -> None:
    config = SpeechLLMConfig.tiny(400)
    if rule is not None:
        config = dataclasses.replace(config, generation=rule)
    make_tiny(tmp_path / "m", config)
    model, tokenizer = load_model(tmp_path / "m", torch.device("cpu"), torch.float32)
    torch.nn.init.zeros_(model.llama.lm_head.weight)  # every token is as likely: the same one is taken always
    core = assemble(EngineConfig(tmp_path), model, tokenizer, Sizes(2, 64, 64))
    core.submit(GenerateRequest("r", "Say it.", None, b"", SamplingParams(20)))
    events = []
    while core.wait(0.0):
        events += core.step().events
    said = [token for event in events if isinstance(event, Delta) for token in event.token_ids]
    assert len(said) == length
    assert len(set(said)) == 1
    (end,) = [event for event in events if isinstance(event, Finished)]
    assert (end.finish_reason, end.usage.completion_tokens) == (reason, length)


@pytest.mark.parametrize(("field", "value"), [("max_repeats", 1), ("longest_repeat", 0)])
def test_a_rule_that_no_answer_can_keep_is_refused(field: str, value: int) -> None:
    data = SpeechLLMConfig.tiny().to_json()
    data["generation"][field] = value
    with pytest.raises(ConfigError, match=f"generation.{field}"):
        SpeechLLMConfig.from_json(data)
