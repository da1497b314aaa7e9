"""`--merge-prompt`: an engine for one instruction answers as the batched one does, and refuses others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model.config import SpeechLLMConfig
from model.tiny import make_tiny
from server.engine.build import build_core
from server.engine.core import EngineCore
from server.engine.fingerprint import fingerprint
from server.errors import InvalidRequest
from server.types import Delta, EngineConfig, Event, Failed, GenerateRequest, SamplingParams

PROMPT = "Transcribe the audio."


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("merged") / "model"
    make_tiny(output, SpeechLLMConfig.tiny(400), seed=5)
    return output


def ask(core: EngineCore, prompt: str, seconds: float | None) -> list[Event]:
    waveform = None
    if seconds is not None:
        noise = np.random.default_rng(1).standard_normal(int(16_000 * seconds), dtype=np.float32)
        waveform = 0.1 * noise
    key = b"" if seconds is None else str(seconds).encode()
    events = list(core.submit(GenerateRequest("r", prompt, waveform, key, SamplingParams(24))))
    while core.wait(0.0):
        events += core.step().events
    core.check_integrity()
    return events


def ids(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Delta) for token in event.token_ids]


def test_merged_and_batched_engines_answer_alike(directory: Path) -> None:
    batched = build_core(EngineConfig(directory, dtype="float64"))
    merged = build_core(EngineConfig(directory, dtype="float64", merge_prompt=PROMPT))
    assert merged.info.merged_prompt == PROMPT
    assert merged.info.fingerprint == fingerprint(directory)
    for seconds in (0.4, 3.0):
        expected = ids(ask(batched, PROMPT, seconds))
        assert expected
        assert ids(ask(merged, PROMPT, seconds)) == expected
    assert merged.stats().prompt_cache_misses == 0, "the adapter has nothing to do"


OTHERS = [("Something else.", 1.0), (PROMPT + " ", 1.0), (PROMPT, None)]


@pytest.mark.parametrize(("prompt", "seconds"), OTHERS)
def test_other_instructions_are_refused(directory: Path, prompt: str, seconds: float | None) -> None:
    core = build_core(EngineConfig(directory, merge_prompt=PROMPT))
    (refusal,) = ask(core, prompt, seconds)
    assert isinstance(refusal, Failed)
    assert isinstance(refusal.error, InvalidRequest)
    assert refusal.error.param in ("prompt", "audio")
