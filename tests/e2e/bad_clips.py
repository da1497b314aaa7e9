"""Clips that nobody should be able to hurt the server with, and what it says to each."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable

import numpy as np
from audio_samples import encode_av, encode_soundfile, noise, silent_video, streamed_wav, tone, wav

MIB = 2**20
INVALID = (400, "invalid_audio", "audio")
UNSUPPORTED = (415, "unsupported_audio", "audio")
TOO_LARGE = (413, "payload_too_large", "audio")


def wav_at(rate: int) -> bytes:
    """A second of 16-bit WAV whose header claims this rate."""
    data = bytearray(wav())
    struct.pack_into("<II", data, 24, rate, (2 * rate) % 2**32)
    return bytes(data)


def with_sample(value: float) -> bytes:
    """A WAV of floats with one bad one in the middle."""
    samples = tone(0.5)
    samples[4000] = value
    return encode_soundfile(samples, 16_000, "WAV", "FLOAT")


def ten_silent_minutes() -> bytes:
    """A few kilobytes that decode to ten minutes."""
    return encode_av(np.zeros(600 * 8000, np.float32), 8000, "ogg", "libopus", {"page_duration": "1000000"})


def zipped_wav() -> bytes:
    """A clip inside an archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("clip.wav", wav())
    return file.getvalue()


def truncated_flac() -> bytes:
    """A FLAC of noise whose second half is missing."""
    data = encode_soundfile(noise(1.0), 16_000, "FLAC", "PCM_16")
    return data[: len(data) // 2]


BAD_CLIPS: dict[str, tuple[Callable[[], bytes], tuple[int, str, str]]] = {
    "empty": (lambda: b"", INVALID),
    "text": (lambda: b"Dear server, please find attached my speech.\n" * 20, UNSUPPORTED),
    "zip": (zipped_wav, UNSUPPORTED),
    "one-byte": (lambda: b"R", UNSUPPORTED),
    "riff-only": (lambda: b"RIFF\xff\xff\xff\xffWAVE", INVALID),
    "truncated-flac": (truncated_flac, INVALID),
    "lying-header": (lambda: streamed_wav(tone(1.0), 16_000, declared=10 * 32_000), INVALID),
    "1-hz": (lambda: wav_at(1), INVALID),
    "655350-hz": (lambda: wav_at(655_350), INVALID),
    "4-ghz": (lambda: wav_at(2**32 - 1), INVALID),
    "0-hz": (lambda: wav_at(0), INVALID),
    "no-samples": (lambda: encode_soundfile(tone(0.0), 16_000, "WAV", "PCM_16"), INVALID),
    "too-short": (lambda: wav(0.05), INVALID),
    "nan": (lambda: with_sample(float("nan")), INVALID),
    "infinite": (lambda: with_sample(float("-inf")), INVALID),
    "ten-silent-minutes": (ten_silent_minutes, INVALID),
    "video-without-sound": (silent_video, UNSUPPORTED),
    "one-byte-over-the-cap": (lambda: b"\0" * (25 * MIB + 1), TOO_LARGE),
}
