"""Small configurations, and random weights that leave nothing at a value that would hide a mistake."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from model.config import SpeechLLMConfig, WavLMEncoderConfig, WhisperEncoderConfig


def small_config(window_seconds: int = 2, **fields: object) -> SpeechLLMConfig:
    """The tiny sizes with smaller encoders and a window of this length; `fields` replace whole parts."""
    whisper = WhisperEncoderConfig(32, 1, 2, 64, max_source_positions=50 * window_seconds)
    wavlm = WavLMEncoderConfig(
        24, 2, 3, 48, conv_dim=(12,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4
    )
    parts = {"whisper": whisper, "wavlm": wavlm, "window_seconds": window_seconds}
    return dataclasses.replace(SpeechLLMConfig.tiny(400), **(parts | fields))


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Random weights of a size that keeps activations near 1; norms and biases are random too."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            parameter.copy_(_sized(name, noise))


def _sized(name: str, noise: Tensor) -> Tensor:
    if name.endswith(("original0", "gru_rel_pos_const")) or ("norm" in name and name.endswith("weight")):
        return 1.0 + 0.2 * noise
    if noise.ndim == 1:
        return 0.2 * noise
    if "embed" in name:
        return 0.5 * noise
    return noise / noise[0].numel() ** 0.5


def noise_clip(seconds: float, seed: int = 0) -> Tensor:
    """[T] float32 of noise whose loudness changes, at 16 kHz."""
    samples = round(seconds * 16_000)
    generator = torch.Generator().manual_seed(seed)
    envelope = 0.1 + 0.1 * torch.sin(torch.arange(samples) / 3000.0)
    return envelope * torch.randn(samples, generator=generator)
