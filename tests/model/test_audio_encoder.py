"""The audio encoder against transformers' own WavLM, and every clip in a batch against the clip alone."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.floor.stock import stock_wavlm, stock_whisper
from model import pieces, wavlm_encoder, wavlm_modules, whisper_encoder
from model.audio_encoder import AudioEncoder
from model.audio_features import AudioFeatures
from model.config import SpeechLLMConfig, WavLMEncoderConfig, subsampled_length
from model.pieces import finish
from model.wavlm_encoder import WavLMFrontEnd, WavLMTransformer
from model.wavlm_modules import WavLM
from model.whisper_encoder import encode_windows
from tests.model.random_weights import noise_clip, randomize, small_config

BASE = small_config().wavlm
LARGE = dataclasses.replace(
    BASE,
    feat_extract_norm="layer",
    do_stable_layer_norm=True,
    conv_bias=True,
    num_conv_pos_embeddings=15,
    num_buckets=32,
    max_bucket_distance=64,
    layer_norm_eps=1e-3,
)
VARIANTS = pytest.mark.parametrize("config", [BASE, LARGE], ids=["base", "large"])


def build_exact(config: WavLMEncoderConfig, seed: int = 0) -> WavLM:
    wavlm = WavLM(config).double().eval()
    randomize(wavlm, seed)
    return wavlm


def hidden_states(output: Any) -> list[torch.Tensor]:
    """All states as the published code's transformers gave them: the last one after the final norm.

    transformers 5 leaves that norm out of the last hidden state of the large variant.
    """
    return [*output.hidden_states[:-1], output.last_hidden_state]


def front_end(wavlm: WavLM, wave: torch.Tensor) -> torch.Tensor:
    """[T] -> [F, C], with transformers' own modules."""
    stock = stock_wavlm(wavlm)
    features = stock.feature_extractor(wave[None]).transpose(1, 2)
    return stock.feature_projection(features)[0][0]


CHUNKED_OR_NOT = pytest.mark.parametrize("short_frames", [0, wavlm_encoder.SHORT_FRAMES])
"""All clips in chunks, or those of the tests whole."""


@VARIANTS
@pytest.mark.parametrize(
    ("chunk", "short_frames"), [(1, 0), (7, 0), (49, 0), (50, 49), (512, 0), (7, wavlm_encoder.SHORT_FRAMES)]
)
@torch.no_grad()
def test_wavlm_gives_the_hidden_states_of_transformers(monkeypatch, config, chunk, short_frames) -> None:
    monkeypatch.setattr(wavlm_encoder, "QUERY_CHUNK", chunk)
    monkeypatch.setattr(wavlm_encoder, "SHORT_FRAMES", short_frames)
    wavlm = build_exact(config)
    for seconds in (0.025, 0.1, 1.01, 2.0):
        wave = noise_clip(seconds).double()
        expected = stock_wavlm(wavlm)(wave[None], output_hidden_states=True)
        hidden = front_end(wavlm, wave)[None]
        states = finish(WavLMTransformer(wavlm)(hidden, [hidden.shape[1]]))
        assert len(states) == config.num_hidden_layers + 1
        for state, reference in zip(states, hidden_states(expected), strict=True):
            assert torch.allclose(state, reference, rtol=0, atol=1e-10)


@VARIANTS
@CHUNKED_OR_NOT
@torch.no_grad()
def test_wavlm_past_the_farthest_bucket(monkeypatch, config, short_frames) -> None:
    monkeypatch.setattr(wavlm_encoder, "SHORT_FRAMES", short_frames)
    wavlm = build_exact(dataclasses.replace(config, num_buckets=16, max_bucket_distance=20))
    wave = noise_clip(12.3).double()
    expected = hidden_states(stock_wavlm(wavlm)(wave[None], output_hidden_states=True))
    hidden = front_end(wavlm, wave)[None]
    assert hidden.shape[1] > wavlm_encoder.QUERY_CHUNK
    states = finish(WavLMTransformer(wavlm)(hidden, [hidden.shape[1]]))
    for state, reference in zip(states, expected, strict=True):
        assert torch.allclose(state, reference, rtol=0, atol=1e-10)


@VARIANTS
@CHUNKED_OR_NOT
@torch.no_grad()
def test_wavlm_rows_of_a_padded_batch_equal_the_rows_alone(monkeypatch, config, short_frames) -> None:
    monkeypatch.setattr(wavlm_encoder, "QUERY_CHUNK", 16)
    monkeypatch.setattr(wavlm_encoder, "SHORT_FRAMES", short_frames)
    wavlm = build_exact(config)
    rows = [front_end(wavlm, noise_clip(s, seed=i).double()) for i, s in enumerate((1.5, 0.025, 0.62, 1.02))]
    lengths = [len(row) for row in rows]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=1e3)
    together = finish(WavLMTransformer(wavlm)(padded, lengths))
    for i, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        alone = finish(WavLMTransformer(wavlm)(row[None], [length]))
        for state, reference in zip(together, alone, strict=True):
            assert torch.allclose(state[i, :length], reference[0], rtol=0, atol=1e-10)


@pytest.mark.parametrize("padded", [False, True])
def test_attention_as_a_gpu_takes_it_is_the_same(padded: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    query, key, value, gate, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 3, 5, 4), (2, 3, 9, 4), (2, 3, 9, 4), (2, 3, 5, 1), (3, 5, 9))
    )
    padding = torch.tensor([[False] * 9, [False] * 6 + [True] * 3]) if padded else None
    ours = wavlm_encoder._weigh(query, key, value, gate, bias, padding)
    theirs = wavlm_encoder._weigh_fused(query, key, value, gate, bias, padding)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-12)


@VARIANTS
@pytest.mark.parametrize(("flops", "multiple"), [(1.0, 1), (3e6, 1), (3e6, 7), (3e6, 32), (4e7, 32)])
@torch.no_grad()
def test_wavlm_in_pieces_of_any_size_is_the_whole(monkeypatch, config, flops, multiple) -> None:
    """Convolutions, GroupNorm over the clip, positions, projections, attention: wherever they are cut."""
    wavlm = build_exact(config)
    monkeypatch.setattr(pieces, "CPU_FLOPS", flops)
    monkeypatch.setattr(wavlm_encoder, "FRAME_MULTIPLE", multiple)
    for seconds in (0.025, 0.3, 1.234):
        wave = noise_clip(seconds).double() + 0.3  # an offset that a careless variance would lose
        expected = hidden_states(stock_wavlm(wavlm)(wave[None], output_hidden_states=True))
        rows = finish(WavLMFrontEnd(wavlm)(wave))
        assert torch.allclose(rows, front_end(wavlm, wave), rtol=0, atol=1e-10)
        states = finish(WavLMTransformer(wavlm)(rows[None], [len(rows)]))
        for state, reference in zip(states, expected, strict=True):
            assert torch.allclose(state, reference, rtol=0, atol=1e-10)


@torch.no_grad()
def test_wavlm_in_pieces_keeps_to_1e_5_in_float32(monkeypatch) -> None:
    wavlm = build_exact(BASE).float()
    wave = noise_clip(3.0) + 0.3
    expected = front_end(wavlm, wave)
    monkeypatch.setattr(pieces, "CPU_FLOPS", 4e5)
    monkeypatch.setattr(wavlm_encoder, "FRAME_MULTIPLE", 1)
    steps = WavLMFrontEnd(wavlm)(wave)
    assert sum(1 for _ in steps) > 20, "it was cut"
    assert torch.allclose(finish(WavLMFrontEnd(wavlm)(wave)), expected, rtol=0, atol=1e-5)


@VARIANTS
@torch.no_grad()
def test_convolutions_laid_out_for_onednn_are_the_same(monkeypatch, config) -> None:
    monkeypatch.setattr(wavlm_modules, "LARGE", 1)
    wavlm = build_exact(config)
    layers = wavlm.feature_extractor.layers
    assert [layer.prepack(1e9) for layer in layers] == [1e9] * len(layers), "float64 stays as it is"
    wavlm.float()
    wave = noise_clip(0.7)
    expected = finish(WavLMFrontEnd(wavlm)(wave))
    small = min(layer.rows().plain.nbytes for layer in layers)
    assert [layer.prepack(2 * small - 1) for layer in layers] == [2 * small - 1] * len(layers), "no room"
    assert layers[-1].prepack(1e9) == 1e9 - 2 * layers[-1].rows().plain.nbytes
    for layer in layers:
        layer.prepack(1e9)
        assert layer.rows().packed is not None
    packed = finish(WavLMFrontEnd(wavlm)(wave))
    assert torch.allclose(packed, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("num_frames", [None, 37])
@pytest.mark.parametrize("multiple", [1, 32])
@pytest.mark.parametrize("flops", [1.0, 2e6, 1e12])
@torch.no_grad()
def test_whisper_in_pieces_of_any_size_is_the_whole(monkeypatch, flops, num_frames, multiple) -> None:
    monkeypatch.setattr(whisper_encoder, "FRAME_MULTIPLE", multiple)
    config = small_config()
    encoder, features = build_encoder(config), AudioFeatures(config)
    log_mel = torch.cat([features(noise_clip(s, seed=i)).log_mel for i, s in enumerate((1.4, 2.0))]).double()
    expected = stock_whisper(encoder.whisper)(log_mel).last_hidden_state[:, :num_frames]
    monkeypatch.setattr(pieces, "CPU_FLOPS", flops)
    found = finish(encode_windows(encoder.whisper, log_mel, num_frames))
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=0, atol=1e-10)


def build_encoder(config: SpeechLLMConfig) -> AudioEncoder:
    encoder = AudioEncoder(config).double().eval()
    randomize(encoder, seed=1)
    encoder.fold_weight_norm()
    return encoder


@pytest.mark.parametrize(
    ("window", "seconds"),
    [(30, (0.1, 30.0, 0.3)), (30, (30.02, 0.3)), (30, (63.0, 1.0)), (10, (0.1, 10.0, 0.3, 10.02, 21.0))],
)
@torch.no_grad()
def test_every_clip_of_a_batch_gets_what_it_gets_alone(window: int, seconds: tuple[float, ...]) -> None:
    config = small_config(window)
    encoder, features = build_encoder(config), AudioFeatures(config)
    clips = [features(noise_clip(s, seed=i)) for i, s in enumerate(seconds)]
    clips.append(features(torch.zeros(40_000)))
    together = encoder(clips)
    for clip, batched in zip(clips, together, strict=True):
        (alone,) = encoder([clip])
        assert alone.isfinite().all()
        assert alone.shape == batched.shape == (config.num_audio_tokens(len(clip.wave)), 128)
        assert torch.allclose(batched, alone, rtol=0, atol=1e-9)


@torch.no_grad()
def test_a_clip_does_not_depend_on_its_neighbours_or_its_place() -> None:
    config = small_config()
    encoder, features = build_encoder(config), AudioFeatures(config)
    clips = [features(noise_clip(s, seed=i)) for i, s in enumerate((0.5, 2.1, 1.3))]
    reference = encoder(clips)
    for order in itertools.permutations(range(3)):
        for position, out in zip(order, encoder([clips[i] for i in order]), strict=True):
            assert torch.allclose(out, reference[position], rtol=0, atol=1e-9)


@torch.no_grad()
def test_windows_are_joined_end_to_end() -> None:
    """A clip of two full windows and a rest is its three parts' Whisper outputs, the rest not cut short."""
    config = small_config()
    encoder, features = build_encoder(config), AudioFeatures(config)
    wave = noise_clip(4.7)
    (whole,) = finish(encoder.encode_whisper([features(wave)]))
    first, second, rest = (features(part) for part in wave.split(config.window_samples))
    rest = dataclasses.replace(rest, num_frames=first.num_frames)
    parts = finish(encoder.encode_whisper([first, second, rest]))
    assert torch.allclose(whole, torch.cat(parts), rtol=0, atol=1e-9)


@torch.no_grad()
def test_whisper_equals_the_eager_encoder_of_transformers() -> None:
    config = small_config()
    encoder, features = build_encoder(config), AudioFeatures(config)
    clip = features(noise_clip(1.4))
    eager = stock_whisper(encoder.whisper)
    hidden = eager(clip.log_mel.double()).last_hidden_state[:, : clip.num_frames]
    eager.set_attn_implementation("eager")
    reference = eager(clip.log_mel.double()).last_hidden_state[:, : clip.num_frames]
    assert clip.num_frames == 70
    # The eager attention takes its softmax in float32.
    assert torch.allclose(hidden, reference, rtol=0, atol=1e-5)
    (out,) = finish(encoder.encode_whisper([clip]))
    assert torch.allclose(out, encoder.whisper_branch(hidden)[0], rtol=0, atol=1e-9)


@torch.no_grad()
def test_the_layer_sum_is_softmax_weighted_over_all_states() -> None:
    config = small_config()
    encoder = build_encoder(config)
    wave = noise_clip(1.0)
    states = stock_wavlm(encoder.wavlm)(wave.double()[None], output_hidden_states=True).hidden_states
    weights = encoder.wavlm_layer_weights.exp() / encoder.wavlm_layer_weights.exp().sum()
    mixed = sum(weight * state for weight, state in zip(weights, states, strict=True))
    (out,) = finish(encoder.encode_wavlm([AudioFeatures(config)(wave)]))
    assert torch.allclose(out, encoder.wavlm_branch(mixed)[0], rtol=0, atol=1e-9)


@torch.no_grad()
def test_fusion_cuts_both_branches_to_the_shorter() -> None:
    encoder = build_encoder(small_config())
    whisper, wavlm = torch.randn(5, 64).double(), torch.randn(3, 64).double()
    expected = encoder.fusion(torch.cat([whisper[:3], wavlm], dim=1))
    assert torch.equal(encoder.fuse(whisper, wavlm), expected)
    assert torch.equal(encoder.fuse(wavlm, whisper)[:, :], encoder.fusion(torch.cat([wavlm, whisper[:3]], 1)))


CONFIG = small_config(1)
ENCODER = build_encoder(CONFIG)
STOCK = stock_wavlm(ENCODER.wavlm)
FEATURES = AudioFeatures(CONFIG)


@settings(max_examples=30, deadline=None)
@given(st.integers(400, 34_000) | st.sampled_from([400, 719, 720, 15_999, 16_000, 16_001, 32_000, 32_001]))
@torch.no_grad()
def test_the_number_of_audio_tokens_is_told_beforehand(num_samples: int) -> None:
    (tokens,) = ENCODER([FEATURES(torch.zeros(num_samples))])
    assert len(tokens) == CONFIG.num_audio_tokens(num_samples) > 0


@pytest.mark.parametrize("num_samples", [-1, 0, 1, 399])
def test_a_clip_shorter_than_one_frame_has_no_tokens(num_samples: int) -> None:
    assert SpeechLLMConfig.released().num_audio_tokens(num_samples) == 0


@settings(max_examples=300)
@given(st.integers(400, 3_000_000))
def test_wavlm_frames_are_counted_as_transformers_does(num_samples: int) -> None:
    frames = int(STOCK._get_feat_extract_output_lengths(torch.tensor(num_samples)))
    assert CONFIG._num_wavlm_tokens(num_samples) == subsampled_length(frames)


class Shapes(TorchDispatchMode):
    """Notes what shapes convolutions and products of two matrices have."""

    def __init__(self) -> None:
        super().__init__()
        self.convolved: set[tuple[torch.Size, ...]] = set()
        self.multiplied: set[tuple[torch.Size, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.convolution.default:
            self.convolved.add((args[0].shape, args[1].shape))
        elif func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            self.multiplied.add((args[-2].shape, args[-1].shape))
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_clips_of_about_one_length_have_few_shapes(monkeypatch) -> None:
    """Each new one costs a CPU milliseconds: convolutions, front end, Whisper's last layer."""
    monkeypatch.setattr(pieces, "CPU_FLOPS", 3e6)
    config = small_config()
    encoder, features = build_encoder(config), AudioFeatures(config)
    seen = Shapes()
    frames = set()
    for number in range(10):
        clip = features(noise_clip(1.30 + 0.02 * number))
        frames.add(clip.num_frames)
        with seen:
            finish(encode_windows(encoder.whisper, clip.log_mel.double(), clip.num_frames))
            front_end = finish(WavLMFrontEnd(encoder.wavlm)(clip.wave.double()))
            finish(encoder.wavlm_branch.pieces(front_end[None]))
    assert len(frames) == 10
    assert len(seen.convolved) <= 8, "five convolutions, one cut in two"
    assert len(seen.multiplied) <= 50
