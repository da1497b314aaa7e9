"""Every format comes out whole, at 16 kHz, mono."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
import soundfile
import soxr

from server.audio_decode import AudioLimits, decode_audio
from tests.audio_samples import (
    FORMATS,
    LOSSLESS,
    encode_av,
    encode_soundfile,
    noise,
    streamed_wav,
    tone,
    wav,
)

LIMITS = AudioLimits(max_seconds=30.0)
STEP = {"wav PCM_U8": 1 / 128, "wav mu-law": 1 / 32, "wav adpcm": 1 / 8}


def strongest_hz(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform))))
    return float(spectrum.argmax()) * 16_000 / len(waveform)


@pytest.mark.parametrize("rate", [16_000, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", FORMATS)
def test_each_format_keeps_the_tone(name: str, channels: int, rate: int) -> None:
    audio = decode_audio(FORMATS[name](tone(1.0, rate, channels), rate), LIMITS)
    assert audio.waveform.dtype == np.float32
    assert audio.waveform.ndim == 1
    assert abs(strongest_hz(audio.waveform) - 1000) < 3
    # Half of full scale, less what encoders fade in and out or round.
    assert np.sqrt(np.mean(audio.waveform**2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.06)
    # AAC comes with its encoder's delay and a padded last frame, ADPCM with a padded last block.
    padding = 0.11 if "aac" in name else 0.06 if "adpcm" in name else 1 / 16_000
    assert len(audio.waveform) / 16_000 == pytest.approx(1.0, abs=padding)
    assert abs(len(audio.waveform) - audio.info.duration_s * 16_000) <= 1
    assert audio.info.channels == channels
    assert audio.info.sample_rate == (48_000 if "opus" in name else rate)


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_clip_at_16_khz_passes_unchanged(name: str) -> None:
    samples = noise(0.5)
    audio = decode_audio(LOSSLESS[name](samples, 16_000), LIMITS)
    assert np.abs(audio.waveform - samples).max() <= STEP.get(name, 2 / 32768)


def test_16_bit_samples_are_exact() -> None:
    values = np.arange(-32768, 32768, 7, dtype=np.int16)
    file = io.BytesIO()
    soundfile.write(file, values, 16_000, format="WAV", subtype="PCM_16")
    waveform = decode_audio(file.getvalue(), LIMITS).waveform
    np.testing.assert_array_equal(waveform, values.astype(np.float32) / 32768)


@pytest.mark.parametrize("container", ["flac 16", "m4a alac", "mkv pcm"])
def test_lossless_containers_agree_with_wav_bit_for_bit(container: str) -> None:
    values = (noise(0.5) * 32768).astype(np.int16) / np.float32(32768)
    expected = decode_audio(encode_soundfile(values, 16_000, "WAV", "PCM_16"), LIMITS)
    assert decode_audio(FORMATS[container](values, 16_000), LIMITS).key == expected.key


def test_key_is_the_sha256_of_the_waveform() -> None:
    audio = decode_audio(wav(), LIMITS)
    assert audio.key == hashlib.sha256(audio.waveform.tobytes()).digest()


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 96_000, 192_000])
def test_resampling_block_by_block_equals_resampling_at_once(rate: int) -> None:
    samples = noise(2.3, rate)
    audio = decode_audio(encode_soundfile(samples, rate, "WAV", "FLOAT"), LIMITS)
    np.testing.assert_array_equal(audio.waveform, soxr.resample(samples, rate, 16_000, quality="HQ"))
    assert abs(len(audio.waveform) - 2.3 * 16_000) <= 1


def test_channels_are_mixed_by_their_mean() -> None:
    left, right = noise(0.5, seed=1), noise(0.5, seed=2)
    data = encode_soundfile(np.stack([left, right, left, right], axis=1), 16_000, "WAV", "FLOAT")
    np.testing.assert_allclose(decode_audio(data, LIMITS).waveform, (left + right) / 2, atol=1e-7)


def test_long_mp3_has_no_seams_between_blocks() -> None:
    data = FORMATS["mp3"](noise(20.0, 16_000), 16_000)
    expected, _ = soundfile.read(io.BytesIO(data), dtype="float32")
    # One rounding step apart, because soundfile's own reading seeks; a lost frame would show as 0.1.
    np.testing.assert_allclose(decode_audio(data, LIMITS).waveform, expected, atol=1e-7)


@pytest.mark.parametrize("declared", [0, 0xFFFFFFFF, 0x7FFFF000, 0x80000000])
def test_wav_written_to_a_pipe_reaches_to_its_end(declared: int) -> None:
    expected = decode_audio(streamed_wav(tone(1.0), 16_000, 32_000), LIMITS)
    assert decode_audio(streamed_wav(tone(1.0), 16_000, declared), LIMITS).key == expected.key


def test_chunks_behind_the_sound_are_no_sound() -> None:
    assert decode_audio(wav() + b"LIST\x04\0\0\0INFO", LIMITS).key == decode_audio(wav(), LIMITS).key


def test_tags_around_mp3_and_flac_are_skipped() -> None:
    id3 = b"ID3\x03\0\0\0\0\0\x0a" + bytes(10)
    for name, tail in (("mp3", b"TAG" + bytes(125)), ("flac 16", b"")):
        data = FORMATS[name](tone(1.0), 16_000)
        assert decode_audio(id3 + data + tail, LIMITS).key == decode_audio(data, LIMITS).key


def test_live_recordings_without_sizes_are_whole() -> None:
    """What a browser's MediaRecorder and a fragmenting MP4 writer send."""
    samples = tone(1.0, 48_000)
    live = decode_audio(encode_av(samples, 48_000, "webm", "libopus", {"live": "1"}), LIMITS)
    assert live.info.duration_s == pytest.approx(1.0, abs=0.03)
    fragments = {"movflags": "frag_keyframe+empty_moov"}
    fragmented = decode_audio(encode_av(samples, 48_000, "mp4", "aac", fragments), LIMITS)
    assert fragmented.info.duration_s == pytest.approx(1.0, abs=0.07)
