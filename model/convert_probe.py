"""A few numbers of the base model that an adapter was exported from, to notice when it comes back to another.

LLaMA-2-7B and its chat model have the same sizes, and a LoRA of the one on the other answers nonsense.
"""

from __future__ import annotations

from pathlib import Path

import torch

from model.checkpoint_format import check_names
from model.config import LlamaConfig
from model.safetensors_files import CheckpointError, RenamedTensors, TensorFiles
from model.safetensors_stream import ShardSet

PROBE_STEM = "base_probe"
NUM_ROWS = 8
"""Of each matrix, evenly spread."""
MAX_PROBE_BYTES = 2**62
"""The probe is one file."""
RELATIVE = 2.0**-7
"""Between two roundings of one number: bfloat16 keeps 8 bits, so that each is off by 2^-8 at most."""
ABSOLUTE = 1e-6
"""Likewise near zero, where float16 loses its bits."""


def write_probe(config: LlamaConfig, tensors: TensorFiles, directory: Path) -> None:
    """Write `base_probe.safetensors`, float32, from the tensors of a model directory."""
    probe = {name: _rows(tensors.get(name)) for name in _probed(config)}
    shapes = {name: tuple(rows.shape) for name, rows in probe.items()}
    shards = ShardSet(directory, shapes, MAX_PROBE_BYTES, PROBE_STEM)
    for name, rows in probe.items():
        shards.append(name, torch.float32, (rows,))
    shards.finish()


def check_probe(config: LlamaConfig, base: RenamedTensors, base_model: Path, directory: Path) -> None:
    """Raise CheckpointError if the probe in `directory` is of another model than `base`.

    Adapters that were not exported here, or before there was a probe, have none: they pass.
    """
    if not (directory / f"{PROBE_STEM}.safetensors").exists():
        return
    probe = TensorFiles(directory, PROBE_STEM)
    found = {name: _rows(base.get(name)) for name in _probed(config)}
    check_names(probe.shapes, {name: tuple(rows.shape) for name, rows in found.items()}, directory)
    for name, rows in found.items():
        if not torch.allclose(probe.get(name).float(), rows, rtol=RELATIVE, atol=ABSOLUTE):
            raise CheckpointError(
                f"{base_model}: the adapter was exported from another base model ({name} differs); it goes "
                "with the LLaMA-2 model that it was trained on (the released one: Llama-2-7b-chat)"
            )


def _probed(config: LlamaConfig) -> tuple[str, ...]:
    """Tensors that fine-tuning moves, and that lie alike in Meta's and Hugging Face's layout."""
    last = f"llama.layers.{config.num_hidden_layers - 1}"
    return ("llama.norm.weight", "llama.embed_tokens.weight", f"{last}.self_attn.v_proj.weight")


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """A vector [D] whole, of a matrix [N, D] some rows [about NUM_ROWS, D]; float32."""
    step = max(len(tensor) // NUM_ROWS, 1) if tensor.dim() > 1 else 1
    return tensor[::step].float()
