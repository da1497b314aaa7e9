"""Encoder inputs against transformers' own extractors."""

from __future__ import annotations

import dataclasses

import librosa
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import Wav2Vec2FeatureExtractor, WhisperFeatureExtractor

from model.audio_features import AudioFeatures, mel_filters
from model.config import SpeechLLMConfig
from tests.model.random_weights import noise_clip, small_config

RELEASED = AudioFeatures(SpeechLLMConfig.released())
EXTRACTOR = WhisperFeatureExtractor()


@pytest.mark.parametrize("seconds", [0.1, 0.3, 3.0, 29.99, 30.0])
def test_one_window_is_what_the_extractor_gives(seconds: float) -> None:
    wave = noise_clip(seconds)
    expected = EXTRACTOR(wave.numpy(), sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
    clip = RELEASED(wave)
    assert clip.log_mel.dtype == torch.float32
    assert clip.log_mel.shape == (1, 80, 3000)
    assert torch.equal(clip.log_mel, expected["input_features"])
    mel_frames = int(expected["attention_mask"].sum())
    assert clip.num_frames == (mel_frames - 1) // 2 + 1
    assert torch.equal(clip.wave, wave)


SECOND = AudioFeatures(small_config(1))
SECOND_EXTRACTOR = WhisperFeatureExtractor(chunk_length=1)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 16_000) | st.sampled_from([1, 159, 160, 161, 320, 321, 15_840, 15_841, 16_000]))
def test_frames_kept_are_those_of_the_attention_mask(num_samples: int) -> None:
    wave = torch.zeros(num_samples)
    expected = SECOND_EXTRACTOR(
        wave.numpy(), sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
    )
    clip = SECOND(wave)
    assert clip.log_mel.shape == (1, 80, 100)
    assert clip.num_frames == (int(expected["attention_mask"].sum()) - 1) // 2 + 1
    assert 1 <= clip.num_frames <= 50


@pytest.mark.parametrize(("seconds", "windows"), [(30.0, 1), (30.02, 2), (63.0, 3)])
def test_long_clips_take_windows_that_do_not_overlap(seconds: float, windows: int) -> None:
    wave = noise_clip(seconds)
    clip = RELEASED(wave)
    assert clip.log_mel.shape == (windows, 80, 3000)
    assert clip.num_frames == 1500
    for row, part in zip(clip.log_mel, wave.split(480_000), strict=True):
        assert torch.equal(row[None], RELEASED(part).log_mel)


def test_window_length_and_mel_bins_come_from_the_configuration() -> None:
    config = small_config(10)
    config = dataclasses.replace(config, whisper=dataclasses.replace(config.whisper, num_mel_bins=128))
    clip = AudioFeatures(config)(noise_clip(12.0))
    assert clip.log_mel.shape == (2, 128, 1000)
    assert clip.num_frames == 500


def test_silence_has_finite_features() -> None:
    clip = RELEASED(torch.zeros(1600))
    assert clip.log_mel.isfinite().all()


@pytest.mark.parametrize("wave", [noise_clip(0.7) + 0.3, torch.zeros(800)], ids=["noise", "silence"])
def test_normalisation_is_that_of_transformers(wave: torch.Tensor) -> None:
    features = AudioFeatures(dataclasses.replace(small_config(), wavlm_do_normalize=True))
    expected = Wav2Vec2FeatureExtractor(do_normalize=True)(wave.numpy(), sampling_rate=16_000)
    assert np.allclose(features(wave).wave.numpy(), expected["input_values"][0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("bins", [80, 128])
def test_mel_filters_are_those_of_transformers_and_librosa(bins: int) -> None:
    filters = mel_filters(bins)
    expected = WhisperFeatureExtractor(feature_size=bins).mel_filters.T
    assert filters.shape == expected.shape == (bins, 201)
    assert np.allclose(filters, expected, rtol=0, atol=1e-12)
    slaney = librosa.filters.mel(sr=16_000, n_fft=400, n_mels=bins, dtype=np.float64)
    assert np.allclose(filters, slaney, rtol=0, atol=1e-12)
