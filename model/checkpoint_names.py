"""Names and shapes of every tensor that a model directory holds.

The encoders keep the names of transformers' `WhisperEncoder` and `WavLMModel`; a test builds both modules
and compares.

The rotary layout of `llama.*` is Meta's: channels 2i and 2i + 1 of a head form a pair.
"""

from __future__ import annotations

from collections.abc import Mapping

from model.config import (
    BranchConfig,
    LlamaConfig,
    LoraConfig,
    SpeechLLMConfig,
    WavLMEncoderConfig,
    WhisperEncoderConfig,
)

Shape = tuple[int, ...]
Shapes = dict[str, Shape]

GATE_UNITS = 8
"""Outputs of WavLM's gate on its relative position bias, two groups of four; fixed by the published code."""


def expected_tensors(config: SpeechLLMConfig) -> Shapes:
    """Every tensor of a model directory: name to shape, in the order in which they are written."""
    return {
        **speech_tensors(config),
        **llama_tensors(config.llama),
        **lora_tensors(config.llama, config.lora),
    }


def speech_tensors(config: SpeechLLMConfig) -> Shapes:
    """All that is neither the language model's base nor its LoRA: encoders, branches, fusion, adapter."""
    hidden = config.llama.hidden_size
    inner = config.prompt_adapter.hidden_size
    return {
        **_prefixed("whisper.", _whisper(config.whisper)),
        **_prefixed("wavlm.", _wavlm(config.wavlm)),
        "wavlm_layer_weights": (config.wavlm.num_hidden_layers + 1,),
        **_prefixed("whisper_branch.", _branch(config.whisper_branch, config.whisper.d_model)),
        **_prefixed("wavlm_branch.", _branch(config.wavlm_branch, config.wavlm.hidden_size)),
        **_affine("fusion", hidden, config.fusion_size),
        **_affine("prompt_adapter.fc1", inner, hidden),
        **_affine("prompt_adapter.fc2", hidden, inner),
        **_affine("prompt_adapter.attention", 1, hidden),
    }


def llama_tensors(config: LlamaConfig) -> Shapes:
    """The language model without its LoRA; weights are (out, in)."""
    hidden, inner = config.hidden_size, config.intermediate_size
    shapes: Shapes = {"llama.embed_tokens.weight": (config.vocab_size, hidden)}
    for layer in range(config.num_hidden_layers):
        prefix = f"llama.layers.{layer}."
        for projection in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{prefix}self_attn.{projection}.weight"] = (hidden, hidden)
        shapes[f"{prefix}mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{prefix}mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{prefix}mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{prefix}input_layernorm.weight"] = (hidden,)
        shapes[f"{prefix}post_attention_layernorm.weight"] = (hidden,)
    return shapes | {"llama.norm.weight": (hidden,), "llama.lm_head.weight": (config.vocab_size, hidden)}


def lora_tensors(config: LlamaConfig, lora: LoraConfig) -> Shapes:
    """A (D, r) and B (r, D) of every projection that carries LoRA; the transpose of PEFT's."""
    shapes: Shapes = {}
    for layer in range(config.num_hidden_layers):
        for projection in lora.target_modules:
            prefix = f"llama.layers.{layer}.self_attn.{projection}."
            shapes[prefix + "lora_A"] = (config.hidden_size, lora.r)
            shapes[prefix + "lora_B"] = (lora.r, config.hidden_size)
    return shapes


def _prefixed(prefix: str, shapes: Mapping[str, Shape]) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


def _affine(name: str, outputs: int, *inputs: int) -> Shapes:
    """Weight and bias of a linear layer, or of a convolution when a kernel size follows the inputs."""
    return {f"{name}.weight": (outputs, *inputs), f"{name}.bias": (outputs,)}


def _branch(branch: BranchConfig, encoder_size: int) -> Shapes:
    """The GLU halves channels, so a convolution's output is twice what the next layer reads."""
    return {
        **_affine("subsampler.0", branch.subsample_channels, encoder_size, 3),
        **_affine("subsampler.1", 2 * branch.channels, branch.subsample_channels // 2, 3),
        **_affine("bottleneck.down", branch.bottleneck_size, branch.channels),
        **_affine("bottleneck.up", branch.channels, branch.bottleneck_size),
        **_affine("bottleneck.norm", branch.channels),
        **_affine("projector", branch.output_size, branch.channels),
    }


def _whisper(config: WhisperEncoderConfig) -> Shapes:
    size = config.d_model
    shapes = {
        **_affine("conv1", size, config.num_mel_bins, 3),
        **_affine("conv2", size, size, 3),
        "embed_positions.weight": (config.max_source_positions, size),
    }
    for layer in range(config.encoder_layers):
        shapes |= _prefixed(f"layers.{layer}.", _whisper_layer(size, config.encoder_ffn_dim))
    return shapes | _affine("layer_norm", size)


def _whisper_layer(size: int, inner: int) -> Shapes:
    return {
        "self_attn.k_proj.weight": (size, size),
        **_affine("self_attn.v_proj", size, size),
        **_affine("self_attn.q_proj", size, size),
        **_affine("self_attn.out_proj", size, size),
        **_affine("self_attn_layer_norm", size),
        **_affine("fc1", inner, size),
        **_affine("fc2", size, inner),
        **_affine("final_layer_norm", size),
    }


def _wavlm(config: WavLMEncoderConfig) -> Shapes:
    """masked_spec_embed is left out: it belongs to training alone."""
    size, features = config.hidden_size, config.conv_dim[-1]
    kernel, groups = config.num_conv_pos_embeddings, config.num_conv_pos_embedding_groups
    shapes = {
        **_wavlm_front_end(config),
        **_affine("feature_projection.layer_norm", features),
        **_affine("feature_projection.projection", size, features),
        "encoder.pos_conv_embed.conv.bias": (size,),
        "encoder.pos_conv_embed.conv.parametrizations.weight.original0": (1, 1, kernel),
        "encoder.pos_conv_embed.conv.parametrizations.weight.original1": (size, size // groups, kernel),
        **_affine("encoder.layer_norm", size),
    }
    for layer in range(config.num_hidden_layers):
        shapes |= _prefixed(f"encoder.layers.{layer}.", _wavlm_layer(config, layer))
    return shapes


def _wavlm_front_end(config: WavLMEncoderConfig) -> Shapes:
    """feat_extract_norm "group" norms the first convolution alone, "layer" every one."""
    shapes: Shapes = {}
    inputs = 1
    for layer, (channels, kernel) in enumerate(zip(config.conv_dim, config.conv_kernel, strict=True)):
        prefix = f"feature_extractor.conv_layers.{layer}."
        shapes[prefix + "conv.weight"] = (channels, inputs, kernel)
        if config.conv_bias:
            shapes[prefix + "conv.bias"] = (channels,)
        if layer == 0 or config.feat_extract_norm == "layer":
            shapes |= _affine(prefix + "layer_norm", channels)
        inputs = channels
    return shapes


def _wavlm_layer(config: WavLMEncoderConfig, layer: int) -> Shapes:
    """All layers share the position bias that the first one computes, so it alone has the table."""
    size, heads = config.hidden_size, config.num_attention_heads
    shapes: Shapes = {"attention.gru_rel_pos_const": (1, heads, 1, 1)}
    for projection in ("k_proj", "v_proj", "q_proj", "out_proj"):
        shapes |= _affine(f"attention.{projection}", size, size)
    shapes |= _affine("attention.gru_rel_pos_linear", GATE_UNITS, size // heads)
    if layer == 0:
        shapes["attention.rel_attn_embed.weight"] = (config.num_buckets, heads)
    return {
        **shapes,
        **_affine("layer_norm", size),
        **_affine("feed_forward.intermediate_dense", config.intermediate_size, size),
        **_affine("feed_forward.output_dense", size, config.intermediate_size),
        **_affine("final_layer_norm", size),
    }
