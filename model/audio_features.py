"""Waveform -> log-mel windows for Whisper, and the raw wave for WavLM (paper, section 3.1).

The numbers are those of transformers' feature extractors, which are not imported here: that takes a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import MEL_HOP, SAMPLE_RATE, SpeechLLMConfig

N_FFT = 400
MEL_LINEAR_HZ, MEL_LINEAR = 1000.0, 15.0
"""Slaney's mel scale is linear up to here, in steps of 66.7 Hz, then 27 steps for a factor of 6.4."""


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
    """Turns clips into encoder inputs, in float32, where the clip is."""

    def __init__(self, config: SpeechLLMConfig) -> None:
        self._window_samples = config.window_samples
        self._normalize = config.wavlm_do_normalize
        self._mel = mel_filters(config.whisper.num_mel_bins).astype(np.float32)

    def __call__(self, waveform: Tensor) -> ClipFeatures:
        """waveform: [T] float32 at 16 kHz, T > 0."""
        windows = torch.split(waveform, self._window_samples)
        log_mel = torch.stack([self._log_mel(window) for window in windows])
        frames = -(-min(len(waveform), self._window_samples) // MEL_HOP)
        return ClipFeatures(log_mel, self._wave(waveform), (frames - 1) // 2 + 1)

    def _log_mel(self, window: Tensor) -> Tensor:
        """[mel bins, frames] of one window, padded with silence to its full length."""
        padded = F.pad(window, (0, self._window_samples - len(window)))
        hann = torch.hann_window(N_FFT, device=window.device)
        mel = torch.as_tensor(self._mel, device=window.device)
        bins = torch.stft(padded, N_FFT, MEL_HOP, window=hann, return_complex=True)[:, :-1]
        log_mel = (mel @ bins.abs().square()).clamp(min=1e-10).log10()
        return (torch.maximum(log_mel, log_mel.max() - 8.0) + 4.0) / 4.0

    def _wave(self, waveform: Tensor) -> Tensor:
        """The wave as WavLM reads it; the constants are those of transformers' Wav2Vec2FeatureExtractor."""
        if not self._normalize:
            return waveform
        return (waveform - waveform.mean()) / torch.sqrt(waveform.var(unbiased=False) + 1e-7)


def mel_filters(num_bins: int) -> np.ndarray:
    """Triangular filters [num_bins, N_FFT // 2 + 1], each of area 2 over Hz: mel bins of a power spectrum.

    Slaney's (Auditory Toolbox, 1998), as Whisper was trained with; tested against transformers and librosa.
    """
    highest = SAMPLE_RATE / 2
    corners = _mel_to_hz(np.linspace(0.0, _hz_to_mel(highest), num_bins + 2))
    widths = np.diff(corners)[:, None]
    apart = corners[:, None] - np.linspace(0.0, highest, N_FFT // 2 + 1)
    triangles = np.minimum(-apart[:-2] / widths[:-1], apart[2:] / widths[1:]).clip(min=0.0)
    filters: np.ndarray = triangles * (2.0 / (corners[2:] - corners[:-2]))[:, None]
    return filters


def _hz_to_mel(hz: float) -> float:
    """Of a frequency above the linear part."""
    return MEL_LINEAR + 27.0 * float(np.log(hz / MEL_LINEAR_HZ) / np.log(6.4))


def _mel_to_hz(mel: np.ndarray) -> np.ndarray:
    linear = mel * MEL_LINEAR_HZ / MEL_LINEAR
    return np.where(mel < MEL_LINEAR, linear, MEL_LINEAR_HZ * 6.4 ** ((mel - MEL_LINEAR) / 27.0))
