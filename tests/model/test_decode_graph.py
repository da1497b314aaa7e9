"""Captured decode steps give what plain ones give, whoever joins and leaves. On a CPU: TRITON_INTERPRET=1."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import load_model
from model.config import LlamaConfig
from model.fused_llama import FusedLlama
from model.speech_llm import SpeechLLM
from model.tiny import make_tiny
from model.tokenizer import Tokenizer
from server.engine.build import Sizes, assemble
from server.engine.decode_graph import DecodeGraphs, DecodeRow
from server.engine.runner import Runner
from server.types import Delta, EngineConfig, Failed, GenerateRequest, SamplingParams
from tests.model.random_weights import small_config

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REQUESTS = 6 if DEVICE.type == "cuda" else 3
ROWS = 4
PAGES = 200
Loaded = tuple[SpeechLLM, Tokenizer]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    pytest.importorskip("triton")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    config = dataclasses.replace(
        small_config(), llama=LlamaConfig(128, 1, 4, 352, 400, max_position_embeddings=512)
    )
    directory = tmp_path_factory.mktemp("graph") / "m"
    make_tiny(directory, config, seed=5)
    return load_model(directory, DEVICE, torch.float32)


def triton(loaded: Loaded) -> FusedLlama:
    from model import triton_ops

    return FusedLlama(loaded[0].llama, triton_ops)


def requests() -> list[GenerateRequest]:
    """Greedy but for the last, of different lengths, clips and instructions."""
    noise = np.random.default_rng(0)
    made = []
    for i in range(REQUESTS):
        wave = 0.1 * noise.standard_normal(8000 + 2000 * i, dtype=np.float32)
        key = hashlib.sha256(wave.tobytes()).digest()
        temperature = 1.0 if i == REQUESTS - 1 else 0.0
        sampling = SamplingParams(3 + 3 * i, temperature=temperature, seed=3)
        made.append(GenerateRequest(str(i), f"Ask {i % 2}", wave, key, sampling))
    return made


def answers(loaded: Loaded, *, fused: bool) -> dict[str, list[int]]:
    """One request joins every two steps; books are checked after each."""
    def make(model: SpeechLLM, num_pages: int, page_size: int, *_: object) -> Runner:
        return Runner(model, num_pages, page_size, triton(loaded) if fused else None)

    core = assemble(EngineConfig(Path()), *loaded, Sizes(ROWS, 64, PAGES), make_runner=make)
    core.runner.prepare_decodes(ROWS)
    ids: dict[str, list[int]] = {}
    waiting = requests()
    step = 0
    while waiting or core.scheduler.has_work:
        if waiting and step % 2 == 0:
            core.submit(waiting.pop(0))
        for event in core.step().events:
            assert not isinstance(event, Failed), event
            if isinstance(event, Delta):
                ids.setdefault(event.request_id, []).extend(event.token_ids)
        core.check_integrity()
        step += 1
    return ids


def test_joins_and_leaves_change_no_token(loaded: Loaded) -> None:
    plain = answers(loaded, fused=False)
    assert len(plain) == REQUESTS
    assert answers(loaded, fused=True) == plain


def test_rows_that_pad_touch_no_page_and_a_broken_row_is_told(loaded: Loaded) -> None:
    runner = Runner(loaded[0], PAGES, 16, triton(loaded))
    runner.prepare_decodes(ROWS)
    assert isinstance(runner.graphs, DecodeGraphs)
    scale = torch.zeros(128, device=DEVICE)
    broken = torch.full((128,), float("nan"), device=DEVICE)
    before = runner.cache.keys.clone()
    rows = [DecodeRow(5, 17, [7, 9], scale), DecodeRow(6, 2, [3], broken), DecodeRow(7, 0, [4], scale)]
    tokens, logits = runner.graphs.step(rows)
    assert [token >= 0 for token in tokens] == [True, False, True]
    assert logits.shape == (3, 400)
    assert logits[0].isinf().nonzero().flatten().tolist() == [0]
    changed = (runner.cache.keys != before).flatten(2).any(-1).any(0).nonzero().flatten().tolist()
    assert set(changed) == {9, 3, 4, PAGES}
    alone, _ = runner.graphs.step(rows[:1])
    assert alone == tokens[:1]
