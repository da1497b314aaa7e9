"""Waveform -> log-mel windows for Whisper, and the raw wave for WavLM (paper, section 3.1).

Both feature extractors are transformers' own, so that the numbers are the published ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import WhisperFeatureExtractor

from model.config import MEL_HOP, SAMPLE_RATE, SpeechLLMConfig


@dataclass(frozen=True, slots=True)
class ClipFeatures:
    """What the two encoders read of one clip.

    log_mel: [W, mel bins, 100 * window_seconds] float32, one row per window of the clip.
    wave: [T] float32, 16 kHz.
    num_frames: encoder frames (20 ms) kept of every window, the longest of the clip's windows.
    """

    log_mel: Tensor
    wave: Tensor
    num_frames: int


class AudioFeatures:
    """Turns clips into encoder inputs. Stateless after construction; runs on the CPU in float32."""

    def __init__(self, config: SpeechLLMConfig) -> None:
        self._window_samples = config.window_samples
        self._normalize = config.wavlm_do_normalize
        build: Any = WhisperFeatureExtractor
        self._extractor = build(
            feature_size=config.whisper.num_mel_bins,
            sampling_rate=SAMPLE_RATE,
            hop_length=MEL_HOP,
            chunk_length=config.window_seconds,
        )

    def __call__(self, waveform: Tensor) -> ClipFeatures:
        """waveform: [T] float32 at 16 kHz, T > 0."""
        windows = [window.numpy() for window in torch.split(waveform, self._window_samples)]
        log_mel = torch.cat([self._log_mel(window) for window in windows])
        frames = -(-len(windows[0]) // MEL_HOP)
        return ClipFeatures(log_mel, self._wave(waveform), (frames - 1) // 2 + 1)

    def _log_mel(self, window: np.ndarray) -> Tensor:
        """[1, mel bins, frames] of one window, padded with silence to its full length."""
        features = self._extractor(window, sampling_rate=SAMPLE_RATE, return_tensors="np")
        return torch.from_numpy(features["input_features"])

    def _wave(self, waveform: Tensor) -> Tensor:
        """The wave as WavLM reads it; the constants are those of transformers' Wav2Vec2FeatureExtractor."""
        if not self._normalize:
            return waveform
        return (waveform - waveform.mean()) / torch.sqrt(waveform.var(unbiased=False) + 1e-7)
