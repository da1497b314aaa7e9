"""The two branches that hear a clip, and their fusion into the language model's space (paper, section 3.1).

Batching rules, each of which keeps a clip's result equal to what it gets alone:
  - Whisper reads fixed windows, so windows of many clips form one batch.
  - WavLM's first convolution may carry a GroupNorm over time, so the convolutional front end runs per
    clip; its outputs are padded, and the transformer masks the padding.
  - Subsamplers run per clip, because a convolution's zero padding must start where the clip ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import remove_parametrizations
from transformers import WavLMConfig, WavLMModel, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from model.audio_features import ClipFeatures
from model.config import BranchConfig, SpeechLLMConfig, WavLMEncoderConfig, WhisperEncoderConfig

QUERY_CHUNK = 128
"""Rows of WavLM attention at a time: its bias is one number per head and pair of frames, 1.7 GB at once
for a clip of two minutes. On a CPU small chunks stay in its cache."""


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


def build_wavlm(config: WavLMEncoderConfig) -> WavLMModel:
    """transformers' WavLM with these sizes; no training-time masking, so no mask embedding."""
    return WavLMModel(
        WavLMConfig(
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            conv_dim=config.conv_dim,
            conv_kernel=config.conv_kernel,
            conv_stride=config.conv_stride,
            feat_extract_norm=config.feat_extract_norm,
            feat_extract_activation=config.feat_extract_activation,
            conv_bias=config.conv_bias,
            num_conv_pos_embeddings=config.num_conv_pos_embeddings,
            num_conv_pos_embedding_groups=config.num_conv_pos_embedding_groups,
            num_buckets=config.num_buckets,
            max_bucket_distance=config.max_bucket_distance,
            do_stable_layer_norm=config.do_stable_layer_norm,
            layer_norm_eps=config.layer_norm_eps,
            mask_time_prob=0.0,
            mask_feature_prob=0.0,
        )
    )


class Bottleneck(nn.Module):
    """Residual adapter: x + LayerNorm(up(GELU(down(x))))."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Linear(size, inner)
        self.up = nn.Linear(inner, size)
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        out: Tensor = x + self.norm(self.up(F.gelu(self.down(x))))
        return out


class Branch(nn.Module):
    """Subsampler (two convolutions of stride 2 with GLU), bottleneck adapter, projector."""

    def __init__(self, in_channels: int, config: BranchConfig) -> None:
        super().__init__()
        inner = config.subsample_channels
        self.subsampler = nn.ModuleList(
            [
                nn.Conv1d(in_channels, inner, 3, stride=2, padding=1),
                nn.Conv1d(inner // 2, 2 * config.channels, 3, stride=2, padding=1),
            ]
        )
        self.bottleneck = Bottleneck(config.channels, config.bottleneck_size)
        self.projector = nn.Linear(config.channels, config.output_size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, F, in channels] of equal lengths -> [B, subsampled_length(F), output size]."""
        x = x.transpose(1, 2)
        for convolution in self.subsampler:
            x = F.glu(convolution(x), dim=1)
        out: Tensor = self.projector(self.bottleneck(x.transpose(1, 2)))
        return out


class WavLMTransformer:
    """WavLM's transformer over padded clips, with every layer's output, on transformers' own weights.

    transformers' attention returns weights and so materialises [B * H, F, F] several times; this one
    walks through the queries in chunks and asks for the output alone. Tested equal to WavLMModel.
    """

    def __init__(self, wavlm: WavLMModel) -> None:
        self._encoder: Any = wavlm.encoder
        self._stable = bool(wavlm.config.do_stable_layer_norm)

    def __call__(self, hidden: Tensor, lengths: Sequence[int]) -> list[Tensor]:
        """hidden: [B, F, C] after the feature projection, rows padded to F. lengths: frames of each row.

        Returns the layers' inputs and the last output, num_layers + 1 tensors [B, F, C].
        """
        encoder = self._encoder
        frames = hidden.shape[1]
        padding = None
        if min(lengths) < frames:
            ends = torch.tensor(lengths, device=hidden.device)
            padding = torch.arange(frames, device=hidden.device) >= ends[:, None]
            hidden = hidden.masked_fill(padding[:, :, None], 0.0)
        hidden = hidden + encoder.pos_conv_embed(hidden)
        if not self._stable:
            hidden = encoder.layer_norm(hidden)
        bias = self._relative_bias(frames)
        states = [hidden]
        for layer in encoder.layers:
            hidden = self._layer(layer, hidden, bias, padding)
            states.append(hidden)
        if self._stable:
            states[-1] = encoder.layer_norm(hidden)
        return states

    def _layer(self, layer: Any, hidden: Tensor, bias: Tensor, padding: Tensor | None) -> Tensor:
        """One transformer layer; normalisation after (base) or before (large) each block."""
        if self._stable:
            hidden = hidden + self._attend(layer.attention, layer.layer_norm(hidden), bias, padding)
            out: Tensor = hidden + layer.feed_forward(layer.final_layer_norm(hidden))
            return out
        hidden = layer.layer_norm(hidden + self._attend(layer.attention, hidden, bias, padding))
        out = layer.final_layer_norm(hidden + layer.feed_forward(hidden))
        return out

    def _relative_bias(self, frames: int) -> Tensor:
        """[H, 2 * frames - 1]: the bias of relative positions 1 - frames .. frames - 1 (key minus query)."""
        attention = self._encoder.layers[0].attention
        offsets = torch.arange(1 - frames, frames, device=attention.rel_attn_embed.weight.device)
        bias: Tensor = attention.rel_attn_embed(attention._relative_positions_bucket(offsets)).t()
        return bias

    def _attend(self, attention: Any, x: Tensor, bias: Tensor, padding: Tensor | None) -> Tensor:
        """Gated relative attention (WavLM paper, section 3.1). x: [B, F, C] -> [B, F, C].

        bias: [H, 2 F - 1]. padding: [B, F] bool, keys to leave out, or None.
        """
        batch, frames, _ = x.shape
        heads: int = attention.num_heads

        def split(projected: Tensor) -> Tensor:
            return projected.view(batch, frames, heads, -1).transpose(1, 2)

        query, key, value = split(attention.q_proj(x)), split(attention.k_proj(x)), split(attention.v_proj(x))
        gate = self._gate(attention, split(x))
        toeplitz = bias.unfold(1, frames, 1)
        parts = []
        for start in range(0, frames, QUERY_CHUNK):
            stop = min(start + QUERY_CHUNK, frames)
            rows = torch.arange(frames - 1 - start, frames - 1 - stop, -1, device=x.device)
            mask = gate[:, :, start:stop] * toeplitz[:, rows]
            if padding is not None:
                mask = mask.masked_fill(padding[:, None, None], float("-inf"))
            parts.append(F.scaled_dot_product_attention(query[:, :, start:stop], key, value, attn_mask=mask))
        attended = torch.cat(parts, dim=2).transpose(1, 2).reshape(batch, frames, -1)
        projected: Tensor = attention.out_proj(attended)
        return projected

    @staticmethod
    def _gate(attention: Any, x: Tensor) -> Tensor:
        """[B, H, F, 1]: how strongly each query takes the position bias. x: [B, H, F, d]."""
        pairs = attention.gru_rel_pos_linear(x).unflatten(-1, (2, 4)).sum(-1).sigmoid()
        update, reset = pairs[..., :1], pairs[..., 1:]
        gate: Tensor = update * (reset * attention.gru_rel_pos_const - 1.0) + 2.0
        return gate


class AudioEncoder(nn.Module):
    """Clips -> embeddings that the language model reads between its two prompt parts."""

    def __init__(self, config: SpeechLLMConfig) -> None:
        super().__init__()
        self.whisper = build_whisper(config.whisper)
        self.wavlm = build_wavlm(config.wavlm)
        self.wavlm_layer_weights = nn.Parameter(torch.ones(config.wavlm.num_hidden_layers + 1))
        self.whisper_branch = Branch(config.whisper.d_model, config.whisper_branch)
        self.wavlm_branch = Branch(config.wavlm.hidden_size, config.wavlm_branch)
        self.fusion = nn.Linear(config.fusion_size, config.llama.hidden_size)

    def fold_weight_norm(self) -> None:
        """Replace the positional convolution's weight norm by its product, once the weights are loaded."""
        remove_parametrizations(self.wavlm.encoder.pos_conv_embed.conv, "weight")

    def forward(self, clips: Sequence[ClipFeatures]) -> list[Tensor]:
        """One [num_audio_tokens(T), D] tensor per clip."""
        pairs = zip(self.encode_whisper(clips), self.encode_wavlm(clips), strict=True)
        return [self.fuse(whisper, wavlm) for whisper, wavlm in pairs]

    def fuse(self, whisper: Tensor, wavlm: Tensor) -> Tensor:
        """[n1, ...], [n2, ...] -> [min(n1, n2), D]."""
        shorter = min(len(whisper), len(wavlm))
        fused: Tensor = self.fusion(torch.cat([whisper[:shorter], wavlm[:shorter]], dim=-1))
        return fused

    def encode_whisper(self, clips: Sequence[ClipFeatures]) -> list[Tensor]:
        """Per clip [windows * subsampled frames, output size]: its windows' outputs end to end."""
        weight = self.whisper.conv1.weight
        log_mel = torch.cat([clip.log_mel for clip in clips]).to(weight.device, weight.dtype)
        hidden = self.whisper(log_mel).last_hidden_state
        windows = hidden.split([len(clip.log_mel) for clip in clips])
        return [
            self.whisper_branch(part[:, : clip.num_frames]).flatten(0, 1)
            for part, clip in zip(windows, clips, strict=True)
        ]

    def encode_wavlm(self, clips: Sequence[ClipFeatures]) -> list[Tensor]:
        """Per clip [subsampled frames, output size]."""
        states, lengths = self.wavlm_states([clip.wave for clip in clips])
        return [self.fold_wavlm(states[:, i, :length]) for i, length in enumerate(lengths)]

    def wavlm_states(self, waves: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """Waves [T] -> all layers' outputs [layers + 1, B, F, C], rows padded to F; each row's frames."""
        projected = [self._wavlm_front_end(wave) for wave in waves]
        lengths = [len(rows) for rows in projected]
        padded = nn.utils.rnn.pad_sequence(projected, batch_first=True)
        return torch.stack(WavLMTransformer(self.wavlm)(padded, lengths)), lengths

    def fold_wavlm(self, states: Tensor) -> Tensor:
        """One clip's layer outputs [layers + 1, F, C], weighed, through the branch: [F / 4, output size]."""
        mixed = torch.tensordot(self.wavlm_layer_weights.softmax(0), states, dims=1)
        folded: Tensor = self.wavlm_branch(mixed[None])[0]
        return folded

    def _wavlm_front_end(self, wave: Tensor) -> Tensor:
        """[T] -> [F, C]: convolutions and feature projection of one clip."""
        weight = self.wavlm_layer_weights
        features = self.wavlm.feature_extractor(wave.to(weight.device, weight.dtype)[None])
        hidden, _ = self.wavlm.feature_projection(features.transpose(1, 2))
        rows: Tensor = hidden[0]
        return rows
