"""The whole curriculum on a rehearsal's budget, from an empty folder to a directory that answers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from server_process import CONSOLE_SCRIPT

from model.config import SpeechLLMConfig
from training.assemble import STAGES
from training.plot import read_curve
from training.recipe import Recipe

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "tests" / "golden" / "audio" / "kitchen.wav"


def train(*arguments: str) -> None:
    command = [sys.executable, "-m", "training", *arguments, "--recipe", "tiny"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=900, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_from_an_empty_folder_to_an_answer(tmp_path: Path) -> None:
    state, made = tmp_path / "state", tmp_path / "model"
    train("all", str(made), "--state", str(state))
    assert not SpeechLLMConfig.load(made).random_weights
    for stage in STAGES:
        losses = read_curve(state / "curves" / f"{stage}.csv")["loss"]
        assert losses[-1][0] == getattr(Recipe.tiny(), stage).steps
        if stage in ("copy", "language", "single"):  # the others have too few steps to show it
            assert losses[-1][1] < losses[0][1] - 0.3, stage
    done = subprocess.run(
        [CONSOLE_SCRIPT, "ask", str(CLIP), "What is said?", "--model", str(made), "--max-tokens", "16"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.strip()
    before = {path: path.stat().st_mtime_ns for path in (state / "checkpoints").iterdir()}
    train("single", "--state", str(state))
    assert before == {path: path.stat().st_mtime_ns for path in (state / "checkpoints").iterdir()}
    arms = tmp_path / "arms"
    command = [sys.executable, "-m", "training.ablations", str(arms), "--state", str(state)]
    subprocess.run([*command, "--single-steps", "2", "--joint-steps", "2"], cwd=ROOT, check=True, timeout=600)
    weights = {
        arm.name: b"".join(shard.read_bytes() for shard in sorted(arm.glob("model-*.safetensors")))
        for arm in arms.iterdir()
    }
    assert set(weights) == {"full", "no-prompt-adapter", "no-wavlm", "one-stage"}
    assert len(set(weights.values())) == 4
