"""The published checkpoint's names for our tensors, and the sizes that can be read off its shapes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from model.checkpoint_names import Shape
from model.config import PROJECTIONS
from model.safetensors_files import CheckpointError

ENCODERS = {"whisper": "audio_encoder", "wavlm": "wavlm_encoder"}
LLAMA = "gpt_model.model_llama."
PLAIN = {
    "wavlm_layer_weights": "wavlm_encoder.output_weights",
    "fusion": "wavlm_audio_proj",
    "prompt_adapter.fc1": LLAMA + "scale_fc_1",
    "prompt_adapter.fc2": LLAMA + "scale_fc_2",
    "prompt_adapter.attention": LLAMA + "scale_weight_attention",
}
BRANCH_PARTS = {
    "subsampler": "subsample.conv_layers",
    "bottleneck.down": "adapter.down_layer",
    "bottleneck.up": "adapter.up_layer",
    "bottleneck.norm": "adapter.layer_norm",
    "projector": "projector",
}
WEIGHT_NORM = {
    "parametrizations.weight.original0": "weight_g",
    "parametrizations.weight.original1": "weight_v",
}
LLAMA_PARTS = {
    "embed_tokens": "tok_embeddings",
    "lm_head": "output",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attention_norm",
    ".lora_": "_lora_",
}
NEVER_USED = re.compile(r"audio_proj\.(weight|bias)|wavlm_encoder\.model\.masked_spec_embed")
"""What the published code saves but does not compute with: a projection of an earlier design, and the
embedding that replaces masked frames in training."""


def published_name(name: str) -> str:
    """The published checkpoint's name for tensor `name` of a model directory."""
    for encoder, published in ENCODERS.items():
        if name.startswith(f"{encoder}."):
            return f"{published}.model." + _replaced(name.removeprefix(f"{encoder}."), WEIGHT_NORM)
        if name.startswith(f"{encoder}_branch."):
            return f"{published}." + _replaced(name.removeprefix(f"{encoder}_branch."), BRANCH_PARTS)
    if name.startswith("llama."):
        return LLAMA + _replaced(name.removeprefix("llama."), LLAMA_PARTS)
    stem, dot, kind = name.rpartition(".")
    return PLAIN[stem] + dot + kind if dot else PLAIN[name]


def _replaced(name: str, parts: Mapping[str, str]) -> str:
    for ours, published in parts.items():
        name = name.replace(ours, published)
    return name


def is_never_used(name: str) -> bool:
    """Whether the published code itself ignores tensor `name` of its checkpoint."""
    return NEVER_USED.fullmatch(name) is not None


def sizes_from_shapes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The fields of SpeechLLMConfig that no Hugging Face configuration names, from published `shapes`.

    Raises CheckpointError that names a tensor which is missing or has too few dimensions.
    """
    targets = _lora_targets(shapes)
    return {
        "whisper_branch": _branch(shapes, "audio_encoder"),
        "wavlm_branch": _branch(shapes, "wavlm_encoder"),
        "prompt_adapter": {"hidden_size": _size(shapes, LLAMA + "scale_fc_1.weight", 0)},
        "lora": {"r": _size(shapes, _lora_a(targets[0]), 1), "target_modules": targets},
    }


def _branch(shapes: Mapping[str, Shape], encoder: str) -> dict[str, int]:
    return {
        "subsample_channels": _size(shapes, f"{encoder}.subsample.conv_layers.0.weight", 0),
        "channels": _size(shapes, f"{encoder}.projector.weight", 1),
        "bottleneck_size": _size(shapes, f"{encoder}.adapter.down_layer.weight", 0),
        "output_size": _size(shapes, f"{encoder}.projector.weight", 0),
    }


def _lora_a(projection: str) -> str:
    return published_name(f"llama.layers.0.self_attn.{projection}.lora_A")


def _lora_targets(shapes: Iterable[str]) -> list[str]:
    found = set(shapes)
    targets = [projection for projection in PROJECTIONS if _lora_a(projection) in found]
    if not targets:
        raise CheckpointError(f"1 missing: {_lora_a(PROJECTIONS[0])}")
    return targets


def _size(shapes: Mapping[str, Shape], name: str, dimension: int) -> int:
    if name not in shapes:
        raise CheckpointError(f"1 missing: {name}")
    if len(shapes[name]) <= dimension:
        raise CheckpointError(f"1 of the wrong shape: {name} is {list(shapes[name])}")
    return shapes[name][dimension]
