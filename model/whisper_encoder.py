"""Whisper's encoder (Radford et al., 2022), cut in pieces, on transformers' own weights."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from model.config import WhisperEncoderConfig
from model.pieces import Pieces, by_rows, convolve, linear, pauses, rows_of_a_piece


def build_whisper(config: WhisperEncoderConfig) -> WhisperEncoder:
    """transformers' Whisper encoder with these sizes, uninitialised weights."""
    encoder = WhisperEncoder(
        WhisperConfig(
            d_model=config.d_model,
            encoder_layers=config.encoder_layers,
            encoder_attention_heads=config.encoder_attention_heads,
            encoder_ffn_dim=config.encoder_ffn_dim,
            num_mel_bins=config.num_mel_bins,
            max_source_positions=config.max_source_positions,
        )
    )
    encoder.set_attn_implementation("sdpa")
    return encoder


def encode_windows(encoder: WhisperEncoder, log_mel: Tensor) -> Pieces[Tensor]:
    """Windows [W, mel bins, 2 F] -> [W, F, d_model]. Tested equal to the encoder's own forward."""
    x = F.gelu((yield from convolve(encoder.conv1, log_mel)))
    x = F.gelu((yield from convolve(encoder.conv2, x)))
    hidden = x.transpose(1, 2) + encoder.embed_positions.weight
    for layer in encoder.layers:
        hidden = yield from _layer(layer, hidden)
        yield from pauses(hidden)
    normed: Tensor = encoder.layer_norm(hidden)
    return normed


def _layer(layer: Any, hidden: Tensor) -> Pieces[Tensor]:
    """One transformer layer, normalised before each half. [W, F, d] -> the same."""
    attended = yield from _attend(layer.self_attn, layer.self_attn_layer_norm(hidden))

    def rest(x: Tensor, attended: Tensor) -> Tensor:
        x = x + layer.self_attn.out_proj(attended)
        wide = layer.activation_fn(layer.fc1(layer.final_layer_norm(x)))
        out: Tensor = x + layer.fc2(wide)
        return out

    size, wide = layer.fc1.in_features, layer.fc1.out_features
    rows = rows_of_a_piece(2.0 * (size * size + 2 * size * wide), hidden.device)
    flat = yield from by_rows(rest, rows, hidden.flatten(0, 1), attended.flatten(0, 1))
    return _finite(flat.view_as(hidden))


def _attend(attention: Any, x: Tensor) -> Pieces[Tensor]:
    """What comes before the output projection. [W, F, d] -> the same."""
    windows, frames, size = x.shape
    rows = x.flatten(0, 1)

    def split(projected: Tensor) -> Tensor:
        return projected.view(windows, frames, attention.num_heads, -1).transpose(1, 2)

    query = split((yield from linear(attention.q_proj, rows)) * attention.scaling)
    key = split((yield from linear(attention.k_proj, rows)))
    value = split((yield from linear(attention.v_proj, rows)))
    step = rows_of_a_piece(4.0 * frames * size * windows, x.device)
    if x.is_cuda and frames <= step:
        whole = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return whole.transpose(1, 2).reshape(windows, frames, size)
    parts = []
    for part in torch.split(query, step, dim=2):
        parts.append(F.scaled_dot_product_attention(part, key, value, scale=1.0))
        yield
    attended = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
    return attended.transpose(1, 2).reshape(windows, frames, size)


def _finite(x: Tensor) -> Tensor:
    """float16 overflows in the large sizes; transformers cuts it off after every layer."""
    if x.dtype != torch.float16:
        return x
    largest = torch.finfo(x.dtype).max - 1000
    return x.clamp(-largest, largest)
