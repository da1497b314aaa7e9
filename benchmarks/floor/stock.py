"""The encoders as transformers runs them, on the same weights; then our branches, which it does not have."""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized, remove_parametrizations
from transformers import WavLMConfig, WavLMModel, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from model import wavlm_modules, whisper_encoder
from model.audio_encoder import AudioEncoder
from model.audio_features import ClipFeatures

M = TypeVar("M", bound=nn.Module)


class StockEncoders:
    """transformers' own modules in place of both encoders."""

    def __init__(self, encoder: AudioEncoder) -> None:
        self.encoder = encoder
        self.whisper = stock_whisper(encoder.whisper)
        self.wavlm = stock_wavlm(encoder.wavlm)

    @torch.inference_mode()
    def encode_whisper(self, clip: ClipFeatures) -> Tensor:
        """[windows * subsampled frames, output size], by WhisperEncoder.forward (SDPA)."""
        hidden: Tensor = self.whisper(clip.log_mel).last_hidden_state
        branched: Tensor = self.encoder.whisper_branch(hidden[:, : clip.num_frames])
        return branched.flatten(0, 1)

    @torch.inference_mode()
    def encode_wavlm(self, clip: ClipFeatures) -> Tensor:
        """[subsampled frames, output size], by WavLMModel.forward; its weight norm is folded, as ours is."""
        states = self.wavlm(clip.wave[None], output_hidden_states=True).hidden_states
        mixed = torch.tensordot(self.encoder.wavlm_layer_weights.softmax(0), torch.stack(states), dims=1)
        branched: Tensor = self.encoder.wavlm_branch(mixed)
        return branched[0]


def stock_whisper(ours: whisper_encoder.WhisperEncoder) -> WhisperEncoder:
    """transformers' encoder over the same weights."""
    with torch.device("meta"):
        stock = WhisperEncoder(WhisperConfig(**dataclasses.asdict(ours.config)))
    stock.set_attn_implementation("sdpa")
    return _with_weights_of(ours, stock)


def stock_wavlm(ours: wavlm_modules.WavLM) -> WavLMModel:
    """transformers' encoder over the same weights, its weight norm folded if theirs is."""
    unmasked = {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    options: dict[str, Any] = dataclasses.asdict(ours.config) | unmasked
    with torch.device("meta"):
        stock = WavLMModel(WavLMConfig(**options))
    if not is_parametrized(ours.encoder.pos_conv_embed.conv):
        remove_parametrizations(stock.encoder.pos_conv_embed.conv, "weight")
    return _with_weights_of(ours, stock)


def _with_weights_of(ours: nn.Module, stock: M) -> M:
    stock.load_state_dict(ours.state_dict(), strict=True, assign=True)
    return stock.eval().requires_grad_(False)
