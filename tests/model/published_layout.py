"""A checkpoint in the published layout, made from transformers' modules and spelled-out names.

It shares no naming code with the converter, so that a wrong name there cannot agree with a wrong name here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from transformers import WavLMConfig, WavLMModel, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from model.config import SpeechLLMConfig
from model.tiny import CORPUS
from model.tokenizer import train_tokenizer

LLAMA = "gpt_model.model_llama."
LETTERS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "o_proj": "o"}
Tensors = dict[str, torch.Tensor]


def make_published(folder: Path, config: SpeechLLMConfig, **spec: Any) -> Tensors:
    """Write final.pt, spec.json and tokenizer.model into `folder`; returns the state dict."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = published_tensors(config)
    save_published(folder / "final.pt", tensors)
    (folder / "spec.json").write_text(json.dumps(make_spec(config) | spec))
    (folder / "tokenizer.model").write_bytes(train_tokenizer(config.llama.vocab_size, CORPUS))
    return tensors


def save_published(path: Path, tensors: Tensors) -> None:
    """As fairseq saves: the state dict under "model", a Namespace and odds and ends beside it."""
    beside = {"args": argparse.Namespace(arch="speechllm_model"), "cfg": None, "optimizer_history": []}
    torch.save({**beside, "model": tensors}, path)


def make_spec(config: SpeechLLMConfig) -> dict[str, Any]:
    """What a state dict cannot tell, in the names of the Hugging Face configurations."""
    llama = dataclasses.asdict(config.llama)
    del llama["suppress_token_ids"]
    return {
        "whisper": dataclasses.asdict(config.whisper),
        "wavlm": dataclasses.asdict(config.wavlm),
        "llama": llama,
        "prompt_adapter": {"max_scale": config.prompt_adapter.max_scale},
        "feature_extractors": {"whisper": {}, "wavlm": {"do_normalize": config.wavlm_do_normalize}},
    }


def published_tensors(config: SpeechLLMConfig) -> Tensors:
    """Random tensors under the published names."""
    generator = torch.Generator().manual_seed(7)
    shapes = {
        **whisper_shapes(config),
        **wavlm_shapes(config),
        **branch_shapes("audio_encoder", config.whisper_branch, config.whisper.d_model),
        **branch_shapes("wavlm_encoder", config.wavlm_branch, config.wavlm.hidden_size),
        "wavlm_encoder.output_weights": (config.wavlm.num_hidden_layers + 1,),
        **linear("wavlm_audio_proj", config.llama.hidden_size, config.fusion_size),
        **llama_shapes(config),
        **linear("audio_proj", config.llama.hidden_size, config.whisper_branch.output_size),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def linear(name: str, *sizes: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": sizes, f"{name}.bias": sizes[:1]}


def hf_whisper(config: SpeechLLMConfig) -> WhisperEncoder:
    """The module on the meta device."""
    with torch.device("meta"):
        return WhisperEncoder(WhisperConfig(**dataclasses.asdict(config.whisper)))


def hf_wavlm(config: SpeechLLMConfig, **options: Any) -> WavLMModel:
    """The module on the meta device."""
    with torch.device("meta"):
        return WavLMModel(WavLMConfig(**(dataclasses.asdict(config.wavlm) | options)))


def whisper_shapes(config: SpeechLLMConfig) -> dict[str, tuple[int, ...]]:
    state = hf_whisper(config).state_dict()
    return {f"audio_encoder.model.{name}": tuple(tensor.shape) for name, tensor in state.items()}


def wavlm_shapes(config: SpeechLLMConfig) -> dict[str, tuple[int, ...]]:
    """transformers 4.32 called the two halves of the weight norm weight_g and weight_v."""
    shapes = {}
    for name, tensor in hf_wavlm(config).state_dict().items():
        stem = name.replace("parametrizations.weight.original0", "weight_g")
        stem = stem.replace("parametrizations.weight.original1", "weight_v")
        shapes[f"wavlm_encoder.model.{stem}"] = tuple(tensor.shape)
    assert "wavlm_encoder.model.masked_spec_embed" in shapes
    return shapes


def branch_shapes(encoder: str, branch: Any, size: int) -> dict[str, tuple[int, ...]]:
    first, width, inner = branch.subsample_channels, branch.channels, branch.bottleneck_size
    return {
        **linear(f"{encoder}.adapter.down_layer", inner, width),
        **linear(f"{encoder}.adapter.up_layer", width, inner),
        **linear(f"{encoder}.adapter.layer_norm", width),
        **linear(f"{encoder}.projector", branch.output_size, width),
        **linear(f"{encoder}.subsample.conv_layers.0", first, size, 3),
        **linear(f"{encoder}.subsample.conv_layers.1", width * 2, first // 2, 3),
    }


def llama_shapes(config: SpeechLLMConfig) -> dict[str, tuple[int, ...]]:
    llama, inner = config.llama, config.prompt_adapter.hidden_size
    size = llama.hidden_size
    shapes = {
        **linear(LLAMA + "scale_fc_1", inner, size),
        **linear(LLAMA + "scale_fc_2", size, inner),
        **linear(LLAMA + "scale_weight_attention", 1, size),
        LLAMA + "tok_embeddings.weight": (llama.vocab_size, size),
        LLAMA + "norm.weight": (size,),
        LLAMA + "output.weight": (llama.vocab_size, size),
    }
    for layer in range(llama.num_hidden_layers):
        prefix = f"{LLAMA}layers.{layer}."
        for letter in "qkvo":
            shapes[f"{prefix}attention.w{letter}.weight"] = (size, size)
        for letter in (LETTERS[module] for module in config.lora.target_modules):
            shapes[f"{prefix}attention.w{letter}_lora_A"] = (size, config.lora.r)
            shapes[f"{prefix}attention.w{letter}_lora_B"] = (config.lora.r, size)
        shapes[f"{prefix}feed_forward.w1.weight"] = (llama.intermediate_size, size)
        shapes[f"{prefix}feed_forward.w2.weight"] = (size, llama.intermediate_size)
        shapes[f"{prefix}feed_forward.w3.weight"] = (llama.intermediate_size, size)
        shapes[f"{prefix}attention_norm.weight"] = (size,)
        shapes[f"{prefix}ffn_norm.weight"] = (size,)
    return shapes
