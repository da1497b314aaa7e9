"""A model directory -> a SpeechLLM on its device: strict, tensor by tensor, fused where the modules fuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from model.checkpoint_format import TOKENIZER_FILE, CheckpointError, Progress, TensorFiles, open_tensors
from model.config import PROJECTIONS, SpeechLLMConfig
from model.speech_llm import SpeechLLM
from model.tokenizer import Tokenizer


def load_model(
    directory: Path, device: torch.device, dtype: torch.dtype, progress: Progress | None = None
) -> tuple[SpeechLLM, Tokenizer]:
    """Build the model of `directory` and its tokenizer.

    Weights go to the device one tensor at a time, cast to `dtype` there, so neither the host nor the
    device ever holds a second copy of the model. Raises ConfigError, CheckpointError or TokenizerError.
    """
    config = SpeechLLMConfig.load(directory)
    tokenizer = Tokenizer(directory / TOKENIZER_FILE)
    pieces, rows = tokenizer.vocab_size, config.llama.vocab_size
    if pieces != rows:
        raise CheckpointError(f"{directory}: the tokenizer has {pieces} pieces, the model {rows}")
    tensors = open_tensors(directory)  # before memory is taken for sizes that they may not have
    model = empty_model(config, device, dtype)
    fill(model, tensors, progress)
    model.audio_encoder.fold_weight_norm()
    return model.eval().requires_grad_(False), tokenizer


def empty_model(config: SpeechLLMConfig, device: torch.device, dtype: torch.dtype) -> SpeechLLM:
    """The modules with room for their weights, values undefined but for LoRA, which is zero."""
    with torch.device(device), _default(dtype), _NoFirstWeights():
        model = SpeechLLM(config)
    for layer in model.llama.blocks:
        for linear in (layer.attention.qkv, layer.attention.o):
            torch.nn.init.zeros_(linear.lora_A)
            torch.nn.init.zeros_(linear.lora_B)
    return model


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """What modules are made of inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


class _NoFirstWeights(TorchFunctionMode):
    """Leaves out torch.nn.init. (To build on "meta" instead would import torch._dynamo, which takes 2 s.)"""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == torch.nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@torch.no_grad()
def fill(model: SpeechLLM, tensors: TensorFiles, progress: Progress | None = None) -> None:
    """Copy a directory's weights into a model of its sizes, LoRA and weight norm as they are."""
    places = tensor_places(model)
    done, total = 0, tensors.num_bytes
    for name in tensors.shapes:
        place = places[name]
        place.copy_(tensors.get(name).reshape(place.shape))
        done += tensors.tensor_bytes(name)
        if progress is not None:
            progress(done, total, name)


def tensor_places(model: SpeechLLM) -> dict[str, Tensor]:
    """Where each tensor of a model directory lives in the modules: name -> parameter or view of one.

    Reading and writing a directory both go through this map, for serving as for training. The model must
    still have its LoRA and its weight norm.
    """
    places: dict[str, Tensor] = {}
    for name, parameter in model.audio_encoder.named_parameters():
        places[name] = parameter.data
    for name, parameter in model.prompt_adapter.named_parameters():
        places[f"prompt_adapter.{name}"] = parameter.data
    for name in ("embed_tokens", "norm", "lm_head"):
        places[f"llama.{name}.weight"] = model.llama.get_submodule(name).get_parameter("weight").data
    for index in range(len(model.llama.layers)):
        places |= _layer_places(model, index)
    return places


def _layer_places(model: SpeechLLM, index: int) -> dict[str, Tensor]:
    """One decoder layer: q, k and v are slices of one fused weight, gate and up of another."""
    layer, prefix = model.llama.blocks[index], f"llama.layers.{index}."
    gate, up = layer.feed_forward.gate_up.weight.data.chunk(2)
    places = {
        f"{prefix}mlp.gate_proj.weight": gate,
        f"{prefix}mlp.up_proj.weight": up,
        f"{prefix}mlp.down_proj.weight": layer.feed_forward.down.weight.data,
        f"{prefix}input_layernorm.weight": layer.attention_norm.weight.data,
        f"{prefix}post_attention_layernorm.weight": layer.feed_forward_norm.weight.data,
    }
    fused = [(layer.attention.qkv, group) for group in range(3)] + [(layer.attention.o, 0)]
    for projection, (linear, group) in zip(PROJECTIONS, fused, strict=True):
        name = f"{prefix}self_attn.{projection}"
        places[f"{name}.weight"] = linear.weight.data.chunk(linear.groups)[group]
        places[f"{name}.lora_A"] = linear.lora_A.data[group]
        places[f"{name}.lora_B"] = linear.lora_B.data[group]
    return places
