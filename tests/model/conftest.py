"""A directory of random weights and models loaded from it, shared by the tests of this folder."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_model
from model.speech_llm import SpeechLLM
from model.tiny import make_tiny
from model.tokenizer import Tokenizer
from server.os_process import COMPUTING
from tests.model.random_weights import small_config

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers, alone or in company."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with a window of two seconds. Never write to it."""
    path = tmp_path_factory.mktemp("weights") / "small"
    make_tiny(path, small_config(), seed=5)
    return path


@pytest.fixture(scope="session")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sizes, and answers that run to their last allowed token. Never write to it."""
    path = tmp_path_factory.mktemp("weights") / "endless"
    config = small_config()
    llama = dataclasses.replace(config.llama, suppress_token_ids=(0, config.llama.eos_token_id))
    make_tiny(path, dataclasses.replace(config, llama=llama))
    return path


@pytest.fixture
def _quiet_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment that benchmarks insist on; torch has read its own long ago."""
    for name, value in COMPUTING.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(scope="session")
def tokenizer(directory: Path) -> Tokenizer:
    """The directory's tokenizer."""
    return Tokenizer(directory / "tokenizer.model")


@pytest.fixture(scope="session")
def exact(directory: Path) -> SpeechLLM:
    """The directory's model in float64. Never merge it."""
    return load_model(directory, CPU, torch.float64)[0]
