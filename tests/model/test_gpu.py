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
from tests.model.random_weights import noise_clip, small_config

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


def test_encoders_on_the_device_hear_what_the_cpu_hears(tmp_path: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    make_tiny(tmp_path / "m", small_config(), seed=5)
    waves = [noise_clip(seconds, seed=i) for i, seconds in enumerate((0.3, 2.0, 4.5))]
    there, here = (
        load_model(tmp_path / "m", torch.device(name), torch.float32)[0].encode_audio(waves)
        for name in ("cuda", "cpu")
    )
    for got, expected in zip(there, here, strict=True):
        assert (got.cpu() - expected).norm() < 1e-3 * expected.norm()
