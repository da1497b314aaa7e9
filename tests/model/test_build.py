"""What settings and a model become: devices, types, numbers from the free memory, the longest clip."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from model.config import SAMPLE_RATE, ConfigError
from model.kv_cache import KVCache
from model.speech_llm import SpeechLLM
from model.tokenizer import Tokenizer
from server.engine import build
from server.engine.build import ANSWER_ROOM, Sizes, assemble, longest_clip, measure, warm_core
from server.engine.intake import Intake
from server.errors import ContextLengthExceeded, EngineError
from server.settings import Settings
from server.types import MAX_AUDIO_SECONDS, EngineConfig, GenerateRequest, SamplingParams
from tests.model.random_weights import small_config

CPU = torch.device("cpu")
GIVEN = {
    "served_model_name": "mine",
    "device": "cuda:1",
    "dtype": "bfloat16",
    "merge_prompt": "Transcribe.",
    "max_batch_size": 7,
    "max_batch_tokens": 99,
    "kv_cache_fraction": 0.125,
    "encoder_step_ms": 12.5,
}
NOT_SETTINGS = {"num_pages", "page_size", "encoder_cache_mb", "prefix_cache", "num_threads"}


def test_every_setting_of_the_engine_reaches_it() -> None:
    config = dataclasses.asdict(Settings(model=Path("weights"), **GIVEN).engine_config())
    expected = {"model_dir": Path("weights"), "served_name": "mine", **GIVEN}
    del expected["served_model_name"]
    assert {name: value for name, value in config.items() if name not in NOT_SETTINGS} == expected


def test_what_the_engine_is_told_is_what_it_does(
    directory: Path, exact: SpeechLLM, tokenizer: Tokenizer
) -> None:
    config = EngineConfig(directory, served_name="mine", encoder_step_ms=25.0, max_batch_size=3, num_pages=60)
    core = warm_core(config, exact, tokenizer)
    assert core.info.name == "mine"
    assert core.encoding.slice_s == 0.025
    assert core.scheduler.limits.max_batch_size == 3
    assert core.scheduler.pages.num_pages == 60
    assert core.info.max_context_tokens == min(960, exact.config.llama.max_position_embeddings)


def test_pages_come_from_the_share_of_the_free_memory(
    exact: SpeechLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EngineConfig(Path(), kv_cache_fraction=0.5)
    page = KVCache.bytes_per_page(exact.config.llama, config.page_size, exact.dtype)
    monkeypatch.setattr(build, "free_bytes", lambda: 20 * page)
    assert measure(config, exact) == Sizes(32, 512, 10)
    assert measure(EngineConfig(Path()), exact).num_pages == 6
    assert measure(EngineConfig(Path(), num_pages=3), exact).num_pages == 3
    monkeypatch.setattr(build, "free_bytes", lambda: page)
    with pytest.raises(EngineError, match="no memory for the KV cache"):
        measure(config, exact)


def test_no_more_pages_are_taken_than_all_places_can_fill(
    exact: SpeechLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "free_bytes", lambda: 2**50)
    longest = -(-exact.config.llama.max_position_embeddings // 16)
    assert measure(EngineConfig(Path(), max_batch_size=3), exact).num_pages == 3 * longest


def test_a_full_batch_leaves_room_to_prefill(exact: SpeechLLM) -> None:
    sizes = measure(EngineConfig(Path(), max_batch_size=40, max_batch_tokens=10, num_pages=1), exact)
    assert sizes.max_batch_tokens == 41


@pytest.mark.parametrize("max_context", [220, 256, 400])
def test_the_longest_clip_leaves_room_for_an_answer_and_one_second_more_does_not(
    tokenizer: Tokenizer, max_context: int
) -> None:
    config = small_config()
    intake = Intake(config, tokenizer, max_context, None)

    def room(seconds: float) -> int:
        wave = np.zeros(int(seconds * SAMPLE_RATE), np.float32)
        return intake.sequence(GenerateRequest("r", "", wave, b"k", SamplingParams(10**6))).max_tokens

    seconds = longest_clip(config, tokenizer, max_context)
    assert room(seconds) >= ANSWER_ROOM
    with contextlib.suppress(ContextLengthExceeded):
        assert room(seconds + 1) < ANSWER_ROOM


def test_no_model_hears_more_than_two_minutes_by_default(tokenizer: Tokenizer) -> None:
    assert longest_clip(small_config(), tokenizer, 10**6) == MAX_AUDIO_SECONDS
    assert longest_clip(small_config(), tokenizer, 10) == 0.0


def test_the_model_card_tells_the_longest_clip(exact: SpeechLLM, tokenizer: Tokenizer) -> None:
    core = assemble(EngineConfig(Path()), exact, tokenizer, Sizes(2, 64, 1000))
    longest = longest_clip(exact.config, tokenizer, core.info.max_context_tokens)
    assert core.info.max_audio_seconds == longest > 0


def test_devices_and_types() -> None:
    assert build.pick_device("cpu") == CPU
    assert build.pick_dtype("auto", CPU) == torch.float32
    assert build.pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert build.pick_dtype("float16", CPU) == torch.float16
    for name in ("pentium", "cuda:99"):
        with pytest.raises(ConfigError, match=f"device: '{name}'"):
            build.pick_device(name)
    with pytest.raises(ConfigError, match="dtype: 'float8'"):
        build.pick_dtype("float8", CPU)
