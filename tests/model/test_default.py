"""The embedded default answers as the README says it does."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from server.audio_decode import decode_audio
from server.audio_limits import AudioLimits
from server.engine.build import build_core
from server.engine.core import EngineCore
from server.settings import Settings
from server.types import Delta, EngineConfig, Finished, GenerateRequest, SamplingParams

ROOT = Path(__file__).parents[2]


def shown() -> list[tuple[str, str, str]]:
    """Clip, instruction, answer of each row of the README's table; a clip stands in its first row alone."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("| clip | instruction | answer |\n")[2].partition("\n\n")[0]
    found = []
    for line in table.splitlines()[1:]:
        link, prompt, answer = (cell.strip() for cell in line.strip("|").split("|"))
        clip = re.sub(r".*\((.+)\)", r"\1", link) or found[-1][0]
        found.append((clip, prompt, answer))
    return found


@pytest.fixture(scope="module")
def core() -> EngineCore:
    return build_core(EngineConfig(Settings().model))


def test_the_readme_shows_every_kind_of_task() -> None:
    assert len(shown()) == 6
    assert {clip for clip, _, _ in shown()} == {"examples/clips/evening.flac", "examples/clips/shop.flac"}


@pytest.mark.parametrize(("clip", "prompt", "answer"), shown())
def test_the_answer_that_the_readme_shows(core: EngineCore, clip: str, prompt: str, answer: str) -> None:
    waveform = decode_audio((ROOT / clip).read_bytes(), AudioLimits(max_seconds=10.0)).waveform
    key = hashlib.sha256(waveform.tobytes()).digest()
    core.submit(GenerateRequest("r", prompt, waveform, key, SamplingParams(64)))
    events = []
    while core.wait(0.0):
        events += core.step().events
    assert "".join(event.text for event in events if isinstance(event, Delta)) == answer
    assert isinstance(events[-1], Finished)
    assert events[-1].finish_reason == "stop"
