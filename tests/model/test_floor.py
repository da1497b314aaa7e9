"""The floors' arithmetic against torch's own counter, and the whole measurement for real at a tiny size."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.floor import machine, work
from benchmarks.floor.command import table
from benchmarks.floor.machine import FORMS, ROW_FORMS, Chain, shape_of
from benchmarks.floor.measure import floor, over
from benchmarks.floor.stages import Measured, Probe, Stage
from benchmarks.floor.stock import StockEncoders
from benchmarks.floor.targets import FLOORS, STOCKS
from benchmarks.floor.work import Product, Work
from model import audio_encoder, whisper_encoder
from model.audio_features import ClipFeatures
from model.llama import DecodeRows, FlatBatch, PrefillSpan
from model.pieces import finish
from model.speech_llm import SpeechLLM
from tests.model.random_weights import noise_clip

CLIPS = pytest.mark.parametrize("seconds", [0.3, 2.0, 4.5], ids="{}s".format)


def counted(compute: Callable[[], object]) -> float:
    """Operations that torch counts, attention as plain products."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.inference_mode():
        compute()
    return float(counter.get_total_flops())


def in_double(clip: ClipFeatures) -> ClipFeatures:
    return dataclasses.replace(clip, log_mel=clip.log_mel.double(), wave=clip.wave.double())


def batch_of(model: SpeechLLM, tokens: int, *parts: PrefillSpan | DecodeRows) -> FlatBatch:
    x, steps = torch.ones(tokens, model.config.llama.hidden_size, dtype=model.dtype), torch.arange(tokens)
    spans = tuple(part for part in parts if isinstance(part, PrefillSpan))
    rows = next((part for part in parts if isinstance(part, DecodeRows)), None)
    return FlatBatch(x, steps, steps, x, spans, rows)


@pytest.fixture
def no_frame_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is computed and dropped is no part of the bound."""
    for module in (whisper_encoder, audio_encoder):
        monkeypatch.setattr(module, "FRAME_MULTIPLE", 1)


@CLIPS
@pytest.mark.usefixtures("no_frame_too_many")
def test_whisper_costs_what_torch_counts(exact: SpeechLLM, seconds: float) -> None:
    clip = in_double(exact.clip_features(noise_clip(seconds)))
    expected = counted(lambda: finish(exact.audio_encoder.encode_whisper([clip])))
    assert work.whisper(exact.audio_encoder, len(clip.log_mel), clip.num_frames).flops == expected
    stock = StockEncoders(exact.audio_encoder)
    whole = counted(lambda: stock.encode_whisper(clip))
    is_full = clip.num_frames == exact.config.whisper.max_source_positions
    assert expected == whole if is_full else expected < whole


@CLIPS
@pytest.mark.usefixtures("no_frame_too_many")
def test_wavlm_costs_what_torch_counts_but_for_a_frame_too_many(exact: SpeechLLM, seconds: float) -> None:
    wave = noise_clip(seconds)
    clip = in_double(exact.clip_features(wave))
    stock = StockEncoders(exact.audio_encoder)
    expected = counted(lambda: stock.encode_wavlm(clip))
    dropped = 2 * exact.audio_encoder.wavlm.encoder.pos_conv_embed.conv.weight.numel()
    assert work.wavlm(exact.audio_encoder, len(wave)).flops == expected - dropped


def test_a_prefill_costs_what_torch_counts_but_for_what_is_masked(exact: SpeechLLM) -> None:
    tokens, config = 7, exact.config.llama
    span = PrefillSpan(0, tokens, torch.tensor([0, 1]), tokens)
    batch = batch_of(exact, tokens, span)
    expected = counted(lambda: exact.logits(exact(batch, exact.new_cache(2, 4))[-1:]))
    masked = 4 * config.hidden_size * config.num_hidden_layers * (tokens * (tokens - 1) // 2)
    assert work.prefill(exact.llama, tokens).flops == expected - masked


def test_a_prompt_pass_costs_what_torch_counts_but_for_what_is_masked(exact: SpeechLLM) -> None:
    tokens, config = 9, exact.config.llama
    expected = counted(lambda: exact.prompt_scale(range(tokens)))
    masked = 4 * config.hidden_size * config.num_hidden_layers * (tokens * (tokens - 1) // 2)
    assert work.prompt_pass(exact.llama, exact.prompt_adapter, tokens).flops == expected - masked


def test_decoding_costs_what_torch_counts(exact: SpeechLLM) -> None:
    rows = DecodeRows(0, torch.tensor([[0, 1], [2, 3], [4, 5]]), torch.tensor([8, 8, 8]))
    batch = batch_of(exact, 3, rows)
    expected = counted(lambda: exact.logits(exact(batch, exact.new_cache(6, 4))))
    assert work.decode(exact.llama, [8, 8, 8]).flops == expected


def test_decoding_reads_every_weight_once_and_every_context(exact: SpeechLLM) -> None:
    config, rank = exact.config.llama, exact.config.lora.r
    size, wide, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    weights = layers * (4 * size * size + 3 * size * wide + 4 * 2 * size * rank) + config.vocab_size * size
    cache = 2 * layers * size * (5 + 9)
    assert work.decode(exact.llama, [5, 9]).bytes == 8 * (weights + cache)


def test_stock_encoders_give_what_ours_give(exact: SpeechLLM) -> None:
    encoder, clip = exact.audio_encoder, in_double(exact.clip_features(noise_clip(1.5)))
    stock = StockEncoders(encoder)
    for run, pieces in (
        (stock.encode_whisper, encoder.encode_whisper([clip])),
        (stock.encode_wavlm, encoder.encode_wavlm([clip])),
    ):
        with torch.inference_mode():
            (ours,) = finish(pieces)
        assert torch.allclose(run(clip), ours, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [*FORMS, *ROW_FORMS])
def test_every_form_is_the_same_product(name: str) -> None:
    weight, x = torch.randn(5, 3), torch.randn(1 if name in ROW_FORMS else 4, 3)
    given: Tensor = (FORMS | ROW_FORMS)[name](weight, len(x))(x)
    expected = F.linear(x, weight)
    assert torch.allclose(given.T if name == "W @ x.T" else given.view(expected.shape), expected, atol=1e-6)


def test_a_chain_takes_every_product_and_one_form_a_shape() -> None:
    products = [Product(torch.randn(6, 4), 1), Product(torch.randn(4, 6), 2), Product(torch.randn(6, 4), 1)]
    chain = Chain(products, 1)
    assert set(chain.forms) == {(1, 4, 6), (2, 6, 4)} == {shape_of(product) for product in products}
    assert chain.forms[2, 6, 4] in FORMS
    assert len(chain._calls) == 3
    assert chain.run() > 0


def test_a_counted_floor_is_all_operations_at_the_products_rate() -> None:
    products = (Product(torch.zeros(10, 10), 5),)
    stages = [Stage(Work(products, 3000.0, 0), Chain(products, 1), counted) for counted in (True, False)]
    assert products[0].flops == 1000
    assert [stage.floor(2.0) for stage in stages] == [8.0, 2.0]


def test_a_repetition_takes_the_least_of_each_side() -> None:
    products = (Product(torch.zeros(10, 10), 5),)
    stage = Stage(Work(products, 0.0, 0), Chain(products, 1), False)
    stage.chain.run = iter([0.3, 0.2, 0.4]).__next__  # type: ignore[method-assign]
    times, other = iter([5.0, 4.0, 6.0]), iter([3.0, 2.0, 1.0])
    probe = Probe({"a": stage}, lambda: {"a": next(times)}, 3, {"a": other.__next__})
    assert probe.measure() == {"a": Measured(4.0, 0.2, 1.0)}
    assert over([Measured(4.0, 2.0, None)], "floor_s").median == 2.0


@pytest.mark.usefixtures("_quiet_threads")
def test_all_stages_for_real(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a size at which no figure means anything."""
    monkeypatch.setattr(machine, "SQUARE", 64)
    monkeypatch.setattr(machine, "READ_FLOATS", 2**16)
    outcome = floor(endless, repetitions=2, clip_seconds=1.0)
    assert set(outcome.reached) == {*FLOORS.values(), *STOCKS.values()}
    assert {spread.count for spread in outcome.reached.values()} == {2}
    assert list(outcome.row["stages"]) == [
        "whisper", "wavlm", "prompt pass", "prefill", "decode 1", "decode 8", "decode 32"
    ]  # fmt: skip
    assert all(stage["over_machine"].low > 0 for stage in outcome.row["stages"].values())
    assert table(outcome).count("\n| decode") == 3
