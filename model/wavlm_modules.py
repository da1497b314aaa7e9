"""The modules that hold WavLM's weights (Chen et al., 2021), and what is computed of them in one piece.

Their parameters have the names of transformers' `WavLMModel`; importing that would cost each start seconds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from model.checkpoint_names import GATE_UNITS
from model.config import WavLMEncoderConfig
from model.prepacked import LARGE, Weight, can_pack, gelu_planless, pack, product


class ConvLayer(nn.Module):
    """One convolution over the wave, its norm if it has one, GELU.

    norm: "group" (every channel over the clip), "layer" (channels of every frame) or None.
    """

    def __init__(
        self, inputs: int, channels: int, kernel: int, stride: int, *, bias: bool, norm: str | None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, channels, kernel, stride, bias=bias)
        if norm == "group":
            self.layer_norm: nn.Module | None = nn.GroupNorm(channels, channels)
        else:
            self.layer_norm = nn.LayerNorm(channels) if norm == "layer" else None
        self._rows: Weight | None = None

    def rows(self) -> Weight:
        """[channels, kernel * inputs]: what multiplies a window laid out as one row."""
        return self._rows or Weight(self.conv.weight.transpose(1, 2).flatten(1))

    def prepack(self, max_bytes: float) -> float:
        """Lay the rows out for oneDNN, for good, if they are worth it and fit; returns what is left."""
        plain = self.rows().plain
        if not can_pack(plain) or plain.numel() < LARGE or 2 * plain.nbytes > max_bytes:
            return max_bytes
        self._rows = Weight(plain, pack(plain))
        return max_bytes - 2 * plain.nbytes

    def forward(self, x: Tensor, rows: Weight | None = None) -> Tensor:
        """[B, T, inputs] -> [B, frames, channels], as one matrix product, which a CPU computes twice as fast
        as the convolution of few frames. rows: if they are known already.
        """
        windows = x.unfold(1, self.conv.kernel_size[0], self.conv.stride[0]).transpose(2, 3).flatten(2)
        rows, norm = rows or self.rows(), self.layer_norm
        x = product(windows, rows.plain, rows.packed, self.conv.bias, gelu=norm is None)
        if norm is None:
            return x
        normed = norm(x.transpose(1, 2)).transpose(1, 2) if isinstance(norm, nn.GroupNorm) else norm(x)
        return gelu_planless(normed)


class FeatureExtractor(nn.Module):
    """The convolutions."""

    def __init__(self, config: WavLMEncoderConfig) -> None:
        super().__init__()
        first = config.feat_extract_norm
        others = "layer" if first == "layer" else None
        self.conv_layers = nn.ModuleList()
        inputs = 1
        for channels, kernel, stride in zip(
            config.conv_dim, config.conv_kernel, config.conv_stride, strict=True
        ):
            norm = others if self.conv_layers else first
            layer = ConvLayer(inputs, channels, kernel, stride, bias=config.conv_bias, norm=norm)
            self.conv_layers.append(layer)
            inputs = channels

    @property
    def layers(self) -> list[ConvLayer]:
        """The convolutions, typed."""
        return [layer for layer in self.conv_layers if isinstance(layer, ConvLayer)]

    def forward(self, waves: Tensor) -> Tensor:
        """[B, T] of equal lengths -> [B, F, channels]."""
        x = waves[:, :, None]
        for layer in self.conv_layers:
            x = layer(x)
        return x


class FeatureProjection(nn.Module):
    """From the convolutions' channels to the transformer's width C."""

    def __init__(self, channels: int, size: int, eps: float) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(channels, eps=eps)
        self.projection = nn.Linear(channels, size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., channels] -> [..., C]."""
        out: Tensor = self.projection(self.layer_norm(x))
        return out


class PositionalConvolution(nn.Module):
    """Weights of the convolution whose output is added as positions; its norm is over each kernel place."""

    def __init__(self, config: WavLMEncoderConfig) -> None:
        super().__init__()
        size, kernel = config.hidden_size, config.num_conv_pos_embeddings
        groups = config.num_conv_pos_embedding_groups
        self.conv = weight_norm(nn.Conv1d(size, size, kernel, padding=kernel // 2, groups=groups), dim=2)


class Attention(nn.Module):
    """Weights of gated relative attention. The first layer alone has the table of position biases."""

    def __init__(self, config: WavLMEncoderConfig, *, has_table: bool) -> None:
        super().__init__()
        size, self.num_heads = config.hidden_size, config.num_attention_heads
        self.k_proj = nn.Linear(size, size)
        self.v_proj = nn.Linear(size, size)
        self.q_proj = nn.Linear(size, size)
        self.out_proj = nn.Linear(size, size)
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, self.num_heads, 1, 1))
        self.gru_rel_pos_linear = nn.Linear(size // self.num_heads, GATE_UNITS)
        if has_table:
            self.rel_attn_embed = nn.Embedding(config.num_buckets, self.num_heads)


class FeedForward(nn.Module):
    """Weights of two linear layers, with GELU between."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.intermediate_dense = nn.Linear(size, inner)
        self.output_dense = nn.Linear(inner, size)


class Layer(nn.Module):
    """Weights of one transformer layer."""

    def __init__(self, config: WavLMEncoderConfig, *, has_table: bool) -> None:
        super().__init__()
        size, eps = config.hidden_size, config.layer_norm_eps
        self.attention = Attention(config, has_table=has_table)
        self.layer_norm = nn.LayerNorm(size, eps=eps)
        self.feed_forward = FeedForward(size, config.intermediate_size)
        self.final_layer_norm = nn.LayerNorm(size, eps=eps)


class Encoder(nn.Module):
    """Weights of the transformer."""

    def __init__(self, config: WavLMEncoderConfig) -> None:
        super().__init__()
        self.pos_conv_embed = PositionalConvolution(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(
            Layer(config, has_table=index == 0) for index in range(config.num_hidden_layers)
        )


class WavLM(nn.Module):
    """All of WavLM's weights; `model.wavlm_encoder` computes with them."""

    def __init__(self, config: WavLMEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.feature_extractor = FeatureExtractor(config)
        self.feature_projection = FeatureProjection(
            config.conv_dim[-1], config.hidden_size, config.layer_norm_eps
        )
        self.encoder = Encoder(config)


def position_buckets(offsets: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Rows of the table of position biases, for integer offsets (key minus query) of any shape.

    Half of the rows are for keys that follow. Near offsets have a row each, farther ones share rows in
    proportion to their logarithm, up to max_distance; T5's scheme (Raffel et al., 2020, section 2.1).
    """
    half = num_buckets // 2
    near = half // 2
    distance = offsets.abs()
    # In float32 and in this order, as at a bucket's border another rounding would give another row.
    share = torch.log(distance.float() / near) / math.log(max_distance / near)
    far = (near + share * (half - near)).long().clamp(max=half - 1)
    return torch.where(distance < near, distance, far) + half * (offsets > 0)
