"""The language model in Hugging Face's layout: its names, and its order of the rotary channels.

Meta's rotary pairs channels 2i and 2i + 1 of a head, Hugging Face's pairs i and i + d/2. Both compute the
same once the output channels of q and k, and the columns of their B, are reordered within each head.
"""

from __future__ import annotations

from pathlib import Path

import torch

from model.checkpoint_format import WEIGHTS_STEM, check_names
from model.checkpoint_names import llama_tensors
from model.config import CONFIG_FILE, ConfigError, LlamaConfig
from model.convert_spec import llama_fields, read_json, without
from model.safetensors_files import CheckpointError, RenamedTensors, TensorFiles

ROTARY = ("q_proj", "k_proj")
"""Projections whose output channels the rotary embedding pairs."""
LM_HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
COMPUTED_SUFFIX = ".rotary_emb.inv_freq"
"""A table that old versions of transformers saved although it follows from rope_theta."""


def to_half_split(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorder the rows of `weight` [D, ...] from Meta's rotary layout to Hugging Face's, head by head."""
    paired = weight.reshape(num_heads, -1, 2, *weight.shape[1:])
    return paired.transpose(1, 2).reshape(weight.shape)


def to_interleaved(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Inverse of `to_half_split`: rows of `weight` [D, ...] from Hugging Face's layout to Meta's."""
    paired = weight.reshape(num_heads, 2, -1, *weight.shape[1:])
    return paired.transpose(1, 2).reshape(weight.shape)


def is_rotary(name: str) -> bool:
    """Whether tensor `name` belongs to a projection whose output channels the rotary embedding pairs."""
    return any(f".{projection}." in name for projection in ROTARY)


def hf_name(name: str) -> str:
    """transformers' name in LlamaForCausalLM for `name` of a model directory, which starts with "llama."."""
    inner = name.removeprefix("llama.")
    return inner if inner == LM_HEAD else f"model.{inner}"


def open_hf_llama(directory: Path) -> tuple[LlamaConfig, RenamedTensors]:
    """A LlamaForCausalLM directory: its sizes, and its weights under our names in Meta's rotary layout.

    Raises CheckpointError or ConfigError for a directory of another architecture, with other tensors than
    its own config.json wants, or with options that the decoder does not compute.
    """
    config, tied = read_llama_config(directory)
    files = TensorFiles(directory, WEIGHTS_STEM)
    names = {name: hf_name(name) for name in llama_tensors(config)}
    if tied and LM_HEAD not in files.shapes:
        names["llama.lm_head.weight"] = EMBEDDING
    found = {name: shape for name, shape in files.shapes.items() if not name.endswith(COMPUTED_SUFFIX)}
    check_names(found, {names[ours]: shape for ours, shape in llama_tensors(config).items()}, directory)

    def to_ours(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return to_interleaved(tensor, config.num_attention_heads) if is_rotary(name) else tensor

    return config, RenamedTensors(files, names, to_ours)


def read_llama_config(directory: Path) -> tuple[LlamaConfig, bool]:
    """(sizes, whether the output layer shares the embedding) from transformers' `config.json`.

    Raises ConfigError with the path and the field.
    """
    path = directory / CONFIG_FILE
    data = read_json(path)
    try:
        if data.get("model_type", "llama") != "llama":
            raise ConfigError(f"model_type: {data['model_type']!r} is not supported, only 'llama'")
        fields = llama_fields(without(data, "tie_word_embeddings"), "config")
        for name in SIZES:
            if type(fields.get(name)) is not int:
                raise ConfigError(f"{name}: expected int, got {type(fields.get(name)).__name__}")
        return LlamaConfig(**fields), data.get("tie_word_embeddings") is True
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def check_same_model(base: LlamaConfig, speech: LlamaConfig, directory: Path) -> None:
    """Raise CheckpointError unless `base` has the sizes and the rotary base frequency of `speech`."""
    for name in (*SIZES, "rope_theta"):
        ours, theirs = getattr(speech, name), getattr(base, name)
        if ours != theirs:
            raise CheckpointError(f"{directory}: {name} is {theirs}, but the speech parts go with {ours}")
