"""A model directory's language model as transformers and peft have it: LlamaForCausalLM with a LoRA."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from model.checkpoint_format import open_tensors
from model.config import SpeechLLMConfig
from model.convert_llama_hf import hf_name, is_rotary, to_half_split
from model.peft_io import export_peft

Hook = Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]


def open_peft(directory: Path) -> Any:
    """The decoder of a model directory with its LoRA, float32, SDPA attention: a PeftModel."""
    config = SpeechLLMConfig.load(directory)
    llama: Any = LlamaForCausalLM(llama_config(config))
    llama.float().set_attn_implementation("sdpa")
    llama.load_state_dict(llama_state(directory, config.llama.num_attention_heads))
    with tempfile.TemporaryDirectory() as folder:
        export_peft(directory, Path(folder) / "adapter")
        return PeftModel.from_pretrained(llama, str(Path(folder) / "adapter")).eval()


def llama_config(config: SpeechLLMConfig) -> LlamaConfig:
    """The decoder's sizes in transformers' terms."""
    fields = dataclasses.asdict(config.llama)
    del fields["suppress_token_ids"]
    rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    return LlamaConfig(**fields, rope_parameters=rope)


def llama_state(directory: Path, heads: int) -> dict[str, Tensor]:
    """The decoder's tensors without its LoRA, in transformers' names and rotary layout."""
    tensors = open_tensors(directory)
    state = {}
    for name in tensors.shapes:
        if name.startswith("llama.") and "lora" not in name:
            tensor = tensors.get(name)
            state[hf_name(name)] = to_half_split(tensor, heads) if is_rotary(name) else tensor
    return state


class ScaledLora:
    """Gives a PeftModel's LoRA the strength that an instruction's scale [D] asks for, channel by channel.

    peft knows one number for all channels. Both ways are exact: the LoRA's output is linear in B's rows.
    """

    def __init__(self, model: nn.Module, num_heads: int) -> None:
        self._num_heads = num_heads
        self._projections = [
            (name, matrix)
            for name, module in model.named_modules()
            if isinstance(module, LoraLayer)
            for matrix in module.lora_B.children()
            if isinstance(matrix, nn.Linear)
        ]
        self._unscaled = [matrix.weight.detach().clone() for _, matrix in self._projections]

    @torch.no_grad()
    def fold(self, scale: Tensor) -> None:
        """One instruction for the whole batch: its scale [D] is multiplied onto the rows of every B."""
        half_split = to_half_split(scale, self._num_heads)
        for (name, matrix), unscaled in zip(self._projections, self._unscaled, strict=True):
            torch.mul(unscaled, self._pick(name, scale, half_split)[:, None], out=matrix.weight)

    @contextlib.contextmanager
    def per_row(self, scales: Tensor) -> Iterator[None]:
        """Inside the block each row of the batch has its own instruction's scale; scales: [B, D].

        One multiplication of what B gives. (peft's own way, `adapter_names`, runs an adapter a row in turn.)
        """
        self.fold(torch.ones_like(scales[0]))
        half_split = torch.stack([to_half_split(scale, self._num_heads) for scale in scales])
        hooks = [
            matrix.register_forward_hook(_multiply(self._pick(name, scales, half_split)[:, None]))
            for name, matrix in self._projections
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @staticmethod
    def _pick(name: str, scale: Tensor, half_split: Tensor) -> Tensor:
        """The scale in the channel order of this projection."""
        return half_split if is_rotary(f"{name}.") else scale


def _multiply(scales: Tensor) -> Hook:
    """scales: [B, 1, D]."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * scales

    return hook
