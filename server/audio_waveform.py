"""Bytes -> 16 kHz mono float32. Runs in the worker processes; a clip is decoded whole or refused.

Decided here: several audio tracks, chained streams and files end to end are refused, since any choice among
them would drop sound in silence. Bare rows of frames (ADTS, MP3 without a Xing header) end to end are one
longer row, which nobody can tell apart, and are taken.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import soxr

from server.audio_boxes import check_matroska, check_mp4
from server.audio_detect import ACCEPTED, AudioFormat, describe, detect_format
from server.audio_frames import ADTS, MAX_TRIM, check_mp3, walk_frames
from server.audio_limits import MAX_CHANNELS, AudioLimits
from server.audio_ogg import check_ogg
from server.audio_readers import Block, Clip, open_with_ffmpeg, open_with_soundfile
from server.audio_tags import skip_id3v2
from server.audio_wav import complete_wav
from server.errors import InvalidAudio, UnsupportedAudio
from server.types import AudioInfo, DecodedAudio

TARGET_RATE = 16_000
MAX_AMPLITUDE = 1e10
"""More than any integer scale in a float file; from 1e18 on squares overflow, and the encoders give NaN."""


def decode_waveform(data: bytes, limits: AudioLimits) -> DecodedAudio:
    """Decode one clip. Raises UnsupportedAudio if it is not audio, InvalidAudio if it is not a good clip."""
    if not data:
        raise InvalidAudio("The audio is empty: no bytes were received.")
    with open_clip(data, limits.max_seconds) as clip:
        _check_clip(clip, limits)
        waveform, num_frames = _read_mono(clip, limits)
    if num_frames < clip.min_frames:
        raise InvalidAudio(
            f"The audio is truncated or corrupt: {num_frames / clip.sample_rate:.2f} s of "
            f"{clip.min_frames / clip.sample_rate:.2f} s could be decoded."
        )
    _check_minimum(num_frames, clip.sample_rate, limits)
    info = AudioInfo(num_frames / clip.sample_rate, clip.sample_rate, clip.channels)
    return DecodedAudio(waveform, hashlib.sha256(waveform.data).digest(), info)


def open_clip(data: bytes, max_seconds: float) -> AbstractContextManager[Clip]:
    """Check that the file is complete, then open it with the decoder for its format."""
    match detect_format(data):
        case AudioFormat.WAV:
            return open_with_soundfile(complete_wav(data), "WAV")
        case AudioFormat.FLAC:
            # Every FLAC frame has a checksum, and libFLAC holds to them and to the declared length.
            return open_with_soundfile(data, "FLAC")
        case AudioFormat.OGG:
            return _open_ogg(data)
        case AudioFormat.MP3:
            row = check_mp3(data, skip_id3v2(data), max_seconds)
            return open_with_soundfile(data, "MP3", max(row.num_samples - MAX_TRIM, 0))
        case AudioFormat.AAC:
            walk_frames(data, skip_id3v2(data), ADTS, "AAC", max_seconds)
            return open_with_ffmpeg(data, "AAC", "aac")
        case AudioFormat.MP4:
            check_mp4(data)
            return open_with_ffmpeg(data, "MP4/M4A", "mov")
        case AudioFormat.MATROSKA:
            check_matroska(data)
            return open_with_ffmpeg(data, "WebM/Matroska", "matroska")
        case None:
            raise UnsupportedAudio(
                f"The bytes are not audio known here but {describe(data)}. Accepted: {ACCEPTED}."
            )


def _open_ogg(data: bytes) -> AbstractContextManager[Clip]:
    """libsndfile decodes Opus at the rate of the encoder's input; ffmpeg at 48 kHz, the codec's own."""
    if check_ogg(data) == "opus":
        return open_with_ffmpeg(data, "Ogg Opus", "ogg")
    return open_with_soundfile(data, "Ogg")


def _check_clip(clip: Clip, limits: AudioLimits) -> None:
    """Refuse by what the header says, before anything is decoded."""
    if not limits.min_sample_rate <= clip.sample_rate <= limits.max_sample_rate:
        raise InvalidAudio(
            f"The audio's sample rate is {clip.sample_rate} Hz; "
            f"{limits.min_sample_rate} to {limits.max_sample_rate} Hz are taken."
        )
    if not 1 <= clip.channels <= MAX_CHANNELS:
        raise InvalidAudio(f"The audio has {clip.channels} channels; at most {MAX_CHANNELS} are taken.")
    if clip.num_frames is not None:
        _check_maximum(clip.num_frames, clip.sample_rate, limits)


def _check_maximum(num_frames: int, rate: int, limits: AudioLimits) -> None:
    if num_frames / rate > limits.max_seconds:
        raise InvalidAudio(f"The audio is longer than {limits.max_seconds:g} s, the most that is taken.")


def _check_minimum(num_frames: int, rate: int, limits: AudioLimits) -> None:
    if num_frames == 0:
        raise InvalidAudio("The audio holds no samples.")
    if num_frames / rate < limits.min_seconds:
        raise InvalidAudio(
            f"The audio is {num_frames / rate:.6g} s long; at least {limits.min_seconds:g} s are needed."
        )


def _read_mono(clip: Clip, limits: AudioLimits) -> tuple[npt.NDArray[np.float32], int]:
    """All of the clip as [T] at 16 kHz, and its length in frames at its own rate.

    Block by block, so that neither the channels nor the rate of a clip ever multiply the memory, and so that
    a clip that unpacks to hours is refused as soon as it passes the cap.
    """
    resampler = _Resampler(clip.sample_rate)
    parts, num_frames = [], 0
    for block in clip.blocks:
        num_frames += len(block)
        _check_maximum(num_frames, clip.sample_rate, limits)
        parts.append(resampler.push(_mix_down(block)))
    parts.append(resampler.flush())
    waveform = np.concatenate(parts)
    # Here and not before: neither the mean nor the filter ever turns such a sample into a number again.
    if not np.isfinite(waveform).all():
        raise InvalidAudio("The audio has samples that are NaN or infinite.")
    if len(waveform) and max(waveform.max(), -waveform.min()) > MAX_AMPLITUDE:
        raise InvalidAudio(f"The audio has samples beyond {MAX_AMPLITUDE:g}; full scale is 1.")
    return waveform, num_frames


def _mix_down(block: Block) -> npt.NDArray[np.float32]:
    """[frames, channels] -> [frames], the mean; one channel passes through bit by bit."""
    with np.errstate(over="ignore", invalid="ignore"):
        return block[:, 0] if block.shape[1] == 1 else block.mean(axis=1, dtype=np.float32)


class _Resampler:
    """soxr as a stream; a clip at 16 kHz passes through untouched."""

    def __init__(self, rate: int) -> None:
        self._stream: Any = None
        if rate != TARGET_RATE:
            self._stream = soxr.ResampleStream(rate, TARGET_RATE, 1, dtype="float32", quality="HQ")

    def push(self, mono: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return mono if self._stream is None else self._resample(mono, last=False)

    def flush(self) -> npt.NDArray[np.float32]:
        empty = np.empty(0, np.float32)
        return empty if self._stream is None else self._resample(empty, last=True)

    def _resample(self, mono: npt.NDArray[np.float32], *, last: bool) -> npt.NDArray[np.float32]:
        part: npt.NDArray[np.float32] = self._stream.resample_chunk(np.ascontiguousarray(mono), last=last)
        return part
