"""What only a CUDA device can show; `make test-gpu` runs this and the golden cases there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from model.checkpoint import load_model
from model.config import LlamaConfig, SpeechLLMConfig
from model.tiny import make_tiny
from server.engine.build import build_core
from server.types import EngineConfig

pytestmark = pytest.mark.gpu

VOCAB = 400


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 200 million weights: large beside the CUDA context's own allocations."""
    config = SpeechLLMConfig.tiny(VOCAB)
    config = dataclasses.replace(config, llama=LlamaConfig(1024, 16, 16, 2752, VOCAB))
    output = tmp_path_factory.mktemp("gpu") / "model"
    make_tiny(output, config)
    return output


def test_bfloat16_weights_go_to_the_device_one_tensor_at_a_time(directory: Path) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model, _ = load_model(directory, torch.device("cuda"), torch.bfloat16)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    largest = max(parameter.nbytes for parameter in model.parameters())
    peak = torch.cuda.max_memory_allocated() - before
    assert weights <= peak <= 1.02 * weights + 4 * largest


def test_an_engine_on_the_device_warms_up_and_leaves_room_for_pages(directory: Path) -> None:
    core = build_core(EngineConfig(directory, device="cuda", kv_cache_fraction=0.1))
    assert core.info.device.startswith("cuda")
    assert core.info.dtype == "bfloat16"
    assert core.scheduler.pages.num_pages > 100
