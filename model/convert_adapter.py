"""A PEFT adapter directory: the LoRA alone, in PEFT's names, orientation and Hugging Face's rotary layout.

PEFT's A is (r, in) and its B (out, r), the transposes of ours; the rows of its B for q and k follow Hugging
Face's rotary layout.
"""

from __future__ import annotations

import math
import reprlib
from pathlib import Path
from typing import Any

import torch

from model.checkpoint_format import check_names
from model.checkpoint_names import Shapes, lora_tensors
from model.config import ConfigError, LlamaConfig, LoraConfig
from model.convert_llama_hf import hf_name, is_rotary, to_half_split, to_interleaved
from model.convert_rules import Fields
from model.convert_spec import in_order, read_json
from model.safetensors_files import RenamedTensors, TensorFiles

PEFT_ALPHA = 8
"""What PEFT takes where an adapter does not say."""
MAX_ALPHA = 1e9
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_STEM = "adapter_model"
PEFT_PREFIX = "base_model.model."
HARMLESS = frozenset(
    (
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
        *("lora_dropout", "megatron_core", "qalora_group_size", "task_type", "exclude_modules"),
    )
)
"""Fields of adapter_config.json that do not change what the adapter computes."""
UNDERSTOOD = frozenset(("peft_type", "r", "lora_alpha", "target_modules", "use_rslora"))
ORDINARY_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Values of init_lora_weights that leave the base model as it was; others, such as pissa, change it."""


def adapter_shapes(config: LlamaConfig, lora: LoraConfig) -> Shapes:
    """PEFT's names and shapes: A (r, D), B (D, r)."""
    return {peft_name(name): shape[::-1] for name, shape in lora_tensors(config, lora).items()}


def adapter_config(lora: LoraConfig) -> Fields:
    """What adapter_config.json says of a LoRA that acts with scale 1."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": lora.r,
        "lora_alpha": lora.r,
        "lora_dropout": 0.0,
        "target_modules": list(lora.target_modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "modules_to_save": None,
    }


def peft_name(name: str) -> str:
    """PEFT's name for the LoRA tensor `name` of a model directory."""
    return f"{PEFT_PREFIX}{hf_name(name)}.weight"


def to_peft(name: str, tensor: torch.Tensor, config: LlamaConfig) -> torch.Tensor:
    """Our A (D, r) or B (r, D) as PEFT's, transposed and in Hugging Face's rotary layout."""
    if is_rotary(name) and name.endswith("lora_B"):
        return to_half_split(tensor.T, config.num_attention_heads)
    return tensor.T


def open_adapter(directory: Path, config: LlamaConfig) -> tuple[LoraConfig, RenamedTensors]:
    """A PEFT adapter for a LLaMA of these sizes, under our names in our layout, alpha / r folded into B.

    Raises ConfigError that names an option that is not supported, CheckpointError for wrong tensors.
    """
    lora, scaling = read_adapter_config(directory)
    files = TensorFiles(directory, ADAPTER_STEM)
    check_names(files.shapes, adapter_shapes(config, lora), directory)

    def to_ours(name: str, tensor: torch.Tensor) -> torch.Tensor:
        if name.endswith("lora_A"):
            return tensor.T
        rows = to_interleaved(tensor, config.num_attention_heads) if is_rotary(name) else tensor
        return _scaled(rows.T, scaling)

    names = {name: peft_name(name) for name in lora_tensors(config, lora)}
    return lora, RenamedTensors(files, names, to_ours)


def _scaled(tensor: torch.Tensor, scaling: float) -> torch.Tensor:
    """`tensor` times `scaling`, rounded once; untouched, and so exact, where the factor is 1."""
    return tensor if scaling == 1 else (tensor.double() * scaling).to(tensor.dtype)


def read_adapter_config(directory: Path) -> tuple[LoraConfig, float]:
    """(rank and projections, PEFT's factor on (xA)B) from `adapter_config.json`.

    Raises ConfigError with the path and the field that is not supported.
    """
    path = directory / ADAPTER_CONFIG
    fields = read_json(path)
    try:
        _refuse_unsupported(fields)
        lora = LoraConfig(_rank(fields), tuple(in_order(_target_modules(fields))))
        return lora, _scaling(fields, lora.r)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _refuse_unsupported(fields: Fields) -> None:
    """Whatever is switched on and not understood might change the mathematics."""
    if fields.get("peft_type") != "LORA":
        raise ConfigError(f"peft_type: {fields.get('peft_type')!r} is not supported, only 'LORA'")
    if fields.get("init_lora_weights", True) not in ORDINARY_STARTS:
        raise ConfigError(f"init_lora_weights: {fields['init_lora_weights']!r} changes the base model")
    if fields.get("bias", "none") != "none":
        raise ConfigError(f"bias: {fields['bias']!r} is not supported, only 'none'")
    checked = HARMLESS | UNDERSTOOD | {"init_lora_weights", "bias"}
    switched_on = [name for name, value in fields.items() if name not in checked and value]
    if switched_on:
        raise ConfigError(f"{', '.join(sorted(switched_on))}: not supported")


def _rank(fields: Fields) -> int:
    r = fields.get("r")
    if type(r) is not int or r <= 0:
        raise ConfigError(f"r: {r!r} is not a positive integer")
    return r


def _target_modules(fields: Fields) -> list[Any]:
    modules = fields.get("target_modules")
    if not isinstance(modules, list) or not modules or not all(isinstance(m, str) for m in modules):
        raise ConfigError(f"target_modules: {modules!r} is not a list of module names")
    return modules


def _scaling(fields: Fields, r: int) -> float:
    """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA."""
    alpha = fields.get("lora_alpha", PEFT_ALPHA)
    is_number = isinstance(alpha, int | float) and not isinstance(alpha, bool)
    if not is_number or not -MAX_ALPHA < alpha < MAX_ALPHA:
        raise ConfigError(f"lora_alpha: {reprlib.repr(alpha)} is not a number, or beyond reason")
    return float(alpha) / (math.sqrt(r) if fields.get("use_rslora") else r)
