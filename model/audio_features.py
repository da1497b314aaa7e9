"""Waveform -> log-mel windows for Whisper, and the raw wave for WavLM (paper, section 3.1).

Both feature extractors are transformers' own, so that the numbers are the published ones. On a GPU the
log-mel windows are computed there, tested equal: on the host they take longer than both encoders there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import WhisperFeatureExtractor

from model.config import MEL_HOP, SAMPLE_RATE, SpeechLLMConfig


@dataclass(frozen=True, slots=True)
class ClipFeatures:
    """What the two encoders read of one clip.

    log_mel: [W, mel bins, 100 * window_seconds] float32, one row per window of the clip.
    wave: [T] float32, 16 kHz. Both are where the waveform was.
    num_frames: encoder frames (20 ms) kept of every window, the longest of the clip's windows.
    """

    log_mel: Tensor
    wave: Tensor
    num_frames: int


class AudioFeatures:
    """Turns clips into encoder inputs, in float32."""

    def __init__(self, config: SpeechLLMConfig) -> None:
        self._window_samples = config.window_samples
        self._normalize = config.wavlm_do_normalize
        self._mel: Tensor | None = None
        build: Any = WhisperFeatureExtractor
        self._extractor = build(
            feature_size=config.whisper.num_mel_bins,
            sampling_rate=SAMPLE_RATE,
            hop_length=MEL_HOP,
            chunk_length=config.window_seconds,
        )

    def __call__(self, waveform: Tensor) -> ClipFeatures:
        """waveform: [T] float32 at 16 kHz, T > 0."""
        if waveform.is_cuda:
            log_mel = self.log_mel_by_torch(waveform)
        else:
            windows = [window.numpy() for window in torch.split(waveform, self._window_samples)]
            log_mel = torch.cat([self._log_mel(window) for window in windows])
        frames = -(-min(len(waveform), self._window_samples) // MEL_HOP)
        return ClipFeatures(log_mel, self._wave(waveform), (frames - 1) // 2 + 1)

    def log_mel_by_torch(self, waveform: Tensor) -> Tensor:
        """All windows [W, mel bins, frames] of waveform [T], computed where it is."""
        samples, device = self._window_samples, waveform.device
        count = -(-len(waveform) // samples)
        windows = F.pad(waveform, (0, count * samples - len(waveform))).view(count, samples)
        if self._mel is None or self._mel.device != device:
            self._mel = torch.from_numpy(self._extractor.mel_filters.T).to(device, torch.float32)
        hann = torch.hann_window(self._extractor.n_fft, device=device)
        bins = torch.stft(windows, len(hann), MEL_HOP, window=hann, return_complex=True)[..., :-1]
        log_mel = (self._mel @ bins.abs().square()).clamp(min=1e-10).log10()
        return (torch.maximum(log_mel, log_mel.amax(dim=(1, 2), keepdim=True) - 8.0) + 4.0) / 4.0

    def _log_mel(self, window: np.ndarray) -> Tensor:
        """[1, mel bins, frames] of one window, padded with silence to its full length."""
        features = self._extractor(window, sampling_rate=SAMPLE_RATE, return_tensors="np")
        return torch.from_numpy(features["input_features"])

    def _wave(self, waveform: Tensor) -> Tensor:
        """The wave as WavLM reads it; the constants are those of transformers' Wav2Vec2FeatureExtractor."""
        if not self._normalize:
            return waveform
        return (waveform - waveform.mean()) / torch.sqrt(waveform.var(unbiased=False) + 1e-7)
