"""Whisper's encoder (Radford et al., 2022), cut in pieces. Tested equal to transformers' own.

Its parameters have the names of transformers' `WhisperEncoder`; importing that would cost each start seconds.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import WhisperEncoderConfig
from model.pieces import (
    FRAME_MULTIPLE,
    Pieces,
    add_linear,
    convolve,
    join,
    linear,
    linear_gelu,
    pauses,
    round_up,
    rows_of_a_piece,
)

FAST_QUERIES = 768
"""torch's attention on a CPU takes fewer keys and queries at a time below that, and a tenth longer."""


class WhisperAttention(nn.Module):
    """Weights of one self-attention of width d; keys have no bias."""

    def __init__(self, size: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scaling = (size // num_heads) ** -0.5
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size)
        self.q_proj = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)


class WhisperLayer(nn.Module):
    """Weights of one transformer layer."""

    def __init__(self, size: int, num_heads: int, inner: int) -> None:
        super().__init__()
        self.self_attn = WhisperAttention(size, num_heads)
        self.self_attn_layer_norm = nn.LayerNorm(size)
        self.fc1 = nn.Linear(size, inner)
        self.fc2 = nn.Linear(inner, size)
        self.final_layer_norm = nn.LayerNorm(size)


class WhisperEncoder(nn.Module):
    """Weights of the encoder; `encode_windows` computes with them."""

    def __init__(self, config: WhisperEncoderConfig) -> None:
        super().__init__()
        self.config = config
        size = config.d_model
        self.conv1 = nn.Conv1d(config.num_mel_bins, size, 3, padding=1)
        self.conv2 = nn.Conv1d(size, size, 3, stride=2, padding=1)
        self.embed_positions = nn.Embedding(config.max_source_positions, size)
        self.layers = nn.ModuleList(
            WhisperLayer(size, config.encoder_attention_heads, config.encoder_ffn_dim)
            for _ in range(config.encoder_layers)
        )
        self.layer_norm = nn.LayerNorm(size)

    @property
    def blocks(self) -> list[WhisperLayer]:
        """The layers, typed."""
        return [layer for layer in self.layers if isinstance(layer, WhisperLayer)]


def encode_windows(
    encoder: WhisperEncoder, log_mel: Tensor, num_frames: int | None = None
) -> Pieces[Tensor]:
    """Windows [W, mel bins, 2 F] -> [W, num_frames, d_model], F the encoder's positions, all unless fewer
    are asked for: every layer but the last needs all of them, for each frame attends to each.
    """
    x = F.gelu((yield from convolve(encoder.conv1, log_mel)))
    x = F.gelu((yield from convolve(encoder.conv2, x)))
    hidden = x.transpose(1, 2) + encoder.embed_positions.weight
    *_, last = encoder.blocks
    kept = None if num_frames is None else round_up(num_frames, FRAME_MULTIPLE)
    for layer in encoder.blocks:
        hidden = yield from _layer(layer, hidden, kept if layer is last else None)
        yield from pauses(hidden)
    normed: Tensor = encoder.layer_norm(hidden[:, :num_frames])
    return normed


def _layer(layer: WhisperLayer, hidden: Tensor, kept: int | None) -> Pieces[Tensor]:
    """One transformer layer, normalised before each half. [W, F, d] -> its first frames [W, kept, d].

    kept: None for all; may be more than there are.
    """
    attended = yield from _attend(layer.self_attn, layer.self_attn_layer_norm(hidden), kept)
    hidden = yield from add_linear(hidden[:, :kept], layer.self_attn.out_proj, attended)
    wide = yield from linear_gelu(layer.fc1, layer.final_layer_norm(hidden))
    return _finite((yield from add_linear(hidden, layer.fc2, wide)))


def _attend(attention: WhisperAttention, x: Tensor, kept: int | None) -> Pieces[Tensor]:
    """What comes before the output projection. [W, F, d] -> of the first frames [W, kept, d]."""
    windows, frames, size = x.shape

    def split(projected: Tensor) -> Tensor:
        return projected.view(windows, -1, attention.num_heads, size // attention.num_heads).transpose(1, 2)

    query = split((yield from linear(attention.q_proj, x[:, :kept])))
    key = split((yield from linear(attention.k_proj, x)))
    value = split((yield from linear(attention.v_proj, x)))
    queries = query.shape[2]
    clips, step = [slice(None)], rows_of_a_piece(4.0 * frames * size * windows, x.device)
    is_cut = not x.is_cuda or queries > step
    if is_cut:
        clips = [slice(window, window + 1) for window in range(windows)]
        step = max(rows_of_a_piece(4.0 * frames * size, x.device), FAST_QUERIES)
    attended = []
    for clip in clips:
        parts = []
        for part in query[clip].chunk(max(1, queries // step), dim=2):
            attend = F.scaled_dot_product_attention
            parts.append(attend(part, key[clip], value[clip], scale=attention.scaling))
            if is_cut:
                yield
        attended.append(join(parts, 2))
    return join(attended).transpose(1, 2).reshape(windows, queries, size)


def _finite(x: Tensor) -> Tensor:
    """float16 overflows in the large sizes; transformers cuts it off after every layer."""
    if x.dtype != torch.float16:
        return x
    largest = torch.finfo(x.dtype).max - 1000
    return x.clamp(-largest, largest)
