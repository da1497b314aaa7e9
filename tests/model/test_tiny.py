"""The directory of random weights: the same bytes for the same seed, and marked as random."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_model
from model.checkpoint_format import CheckpointError
from model.config import SpeechLLMConfig
from model.tiny import make_tiny
from tests.model.random_weights import noise_clip, small_config

ROOT = Path(__file__).parents[2]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_the_same_seed_gives_the_same_bytes_and_another_gives_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_tiny(tmp_path / name, small_config(), seed)
    a, b, c = (contents(tmp_path / name) for name in "abc")
    assert a == b
    assert a["tokenizer.model"] == c["tokenizer.model"]
    assert a["model.safetensors"] != c["model.safetensors"]
    assert set(a) == {"config.json", "model.safetensors", "tokenizer.model"}


def test_another_process_gives_the_same_bytes(tmp_path: Path) -> None:
    make_tiny(tmp_path / "here")
    there = tmp_path / "there"
    subprocess.run([sys.executable, "-m", "model.tiny", str(there)], cwd=ROOT, check=True, timeout=60)
    assert contents(tmp_path / "here") == contents(there)


def test_it_says_that_nobody_trained_it_and_is_small(tmp_path: Path) -> None:
    config = make_tiny(tmp_path / "tiny")
    assert config == SpeechLLMConfig.load(tmp_path / "tiny")
    assert json.loads((tmp_path / "tiny" / "config.json").read_text())["random_weights"] is True
    assert sum(map(len, contents(tmp_path / "tiny").values())) < 8 * 2**20


def test_what_is_there_already_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(CheckpointError, match="not empty"):
        make_tiny(tmp_path / "full")
    assert contents(tmp_path / "full") == {"note": b"mine"}


def test_its_numbers_stay_in_range_through_the_whole_model(tmp_path: Path) -> None:
    make_tiny(tmp_path / "tiny")
    model, tokenizer = load_model(tmp_path / "tiny", torch.device("cpu"), torch.float32)
    (audio,) = model.encode_audio([noise_clip(1.0)])
    assert 0.05 < audio.std() < 20
    scale = model.prompt_scale(tokenizer.encode('"What was said?"'))
    assert 0 < scale.max() <= 3
    assert (scale > 0).sum() > 10
