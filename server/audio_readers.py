"""Open a clip with libsndfile or ffmpeg and read it block by block, from memory alone."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import av
import numpy as np
import numpy.typing as npt
import soundfile
from av.audio.frame import format_dtypes
from av.audio.plane import AudioPlane

from server.errors import InvalidAudio, UnsupportedAudio

Block = npt.NDArray[np.float32]

_BLOCK_ITEMS = 1 << 18
"""Samples of one block over all channels: 1 MiB, whatever the number of channels."""
_CODEC_DELAY_S = 0.25
"""Encoders declare their own delay as part of a track's length; players leave it out."""


@dataclass(frozen=True, slots=True)
class Clip:
    """An opened clip. Its blocks are [frames, channels] float32 and can be read once.

    num_frames: as declared, or None. min_frames: fewer than this decoded means that sound was lost.
    """

    sample_rate: int
    channels: int
    blocks: Iterator[Block]
    num_frames: int | None = None
    min_frames: int = 0


class _Forward(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """Reads from start to end. soundfile seeks after every read of a seekable file, which makes the MP3
    decoder start afresh at each block, with slightly other samples."""

    def seekable(self) -> bool:
        return False


@contextmanager
def open_with_soundfile(data: bytes, name: str, min_frames: int | None = None) -> Iterator[Clip]:
    """Open with libsndfile; `min_frames` is the declared length unless given.

    Raises InvalidAudio, here and while reading, with libsndfile's own words.
    """
    try:
        with _Forward(io.BytesIO(data)) as file:
            declared = file.frames if 0 < file.frames < 1 << 62 else None
            expected = declared or 0 if min_frames is None else min_frames
            yield Clip(file.samplerate, file.channels, _read_blocks(file), declared, expected)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ").rstrip(".") or "damaged data"
        raise InvalidAudio(
            f"The {name} audio is corrupt, truncated or of an unknown kind: {reason}."
        ) from error


def _read_blocks(file: Any) -> Iterator[Block]:
    block_frames = max(1, _BLOCK_ITEMS // file.channels)
    while len(block := file.read(block_frames, dtype="float32", always_2d=True)):
        yield block


@contextmanager
def open_with_ffmpeg(data: bytes, name: str, demuxer: str) -> Iterator[Clip]:
    """Open with one demuxer of ffmpeg and no other, so that bytes cannot choose a playlist's.

    Raises UnsupportedAudio without an audio track; InvalidAudio for several, and for all decoding errors.
    """
    try:
        container = av.open(io.BytesIO(data), format=demuxer, io_open=_refuse_open, metadata_errors="replace")
        with closing(container):
            yield _open_track(container, name)
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or "damaged data"
        raise InvalidAudio(
            f"The {name} audio is corrupt, truncated or of an unknown kind: {reason}."
        ) from error


def _refuse_open(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    """Nothing a clip refers to is ever opened."""
    raise PermissionError("a clip may not refer to other files")


def _open_track(container: Any, name: str) -> Clip:
    tracks = container.streams.audio
    if not tracks:
        kind = (
            "a video without an audio track" if container.streams.video else "a file without an audio track"
        )
        raise UnsupportedAudio(f"The {name} file is {kind}; send audio.")
    if len(tracks) > 1:
        raise InvalidAudio(f"The {name} file has {len(tracks)} audio tracks; send one.")
    track = tracks[0]
    if track.codec_context is None:
        raise UnsupportedAudio(f"The {name} file holds a codec that is not known here.")
    track.codec_context.thread_count = 1
    _make_layout_plain(track.codec_context)
    frames = _decode_frames(container, track, name)
    first = next(frames, None)
    if first is None:
        raise InvalidAudio(f"The {name} audio holds no samples.")
    rate, channels = first.sample_rate, first.layout.nb_channels
    declared = int(track.duration * track.time_base * rate) if track.duration else 0
    blocks = _convert_frames(first, frames, name)
    return Clip(rate, channels, blocks, min_frames=declared - int(_CODEC_DELAY_S * rate))


def _make_layout_plain(context: Any) -> None:
    """Forget in which order a file names its channels: their mean is all that counts.

    PyAV copies an order of the file's own by pointer, and whoever reads it frees it (PyAV's pull request
    2284): read a second time, or by the first frame, a good clip would end the process. So it is read once
    and then set to another.
    """
    layout = context.layout
    count = layout.nb_channels
    if layout.name.startswith(f"{count} channels ("):
        context.layout = f"{count}C"


def _decode_frames(container: Any, track: Any, name: str) -> Iterator[Any]:
    """All frames of the track. A packet that ffmpeg would pass over is an error here."""
    for packet in container.demux(track):
        if packet.is_corrupt:
            raise InvalidAudio(f"The {name} audio is corrupt or truncated.")
        for frame in packet.decode():
            if frame.is_corrupt:
                raise InvalidAudio(f"The {name} audio is corrupt or truncated.")
            yield frame


def _convert_frames(first: Any, rest: Iterator[Any], name: str) -> Iterator[Block]:
    yield to_block(first)
    for frame in rest:
        if (frame.sample_rate, frame.layout.nb_channels) != (first.sample_rate, first.layout.nb_channels):
            raise InvalidAudio(f"The {name} audio changes its sample rate or channels on the way.")
        yield to_block(frame)


def to_block(frame: Any) -> Block:
    """An av.AudioFrame of any sample format as [frames, channels] float32 in -1..1."""
    if frame.format.name not in format_dtypes:
        raise InvalidAudio(f"Samples of the kind {frame.format.name} are not known here.")
    columns = _planes(frame) if frame.format.is_planar else _interleaved(frame)
    if columns.dtype.kind == "f":
        return np.asarray(columns, np.float32)
    half = 1 << 8 * columns.dtype.itemsize - 1
    centre = half if columns.dtype.kind == "u" else 0
    return np.asarray((columns.astype(np.float64) - centre) / half, np.float32)


def _interleaved(frame: Any) -> Block:
    return frame.to_ndarray().reshape(-1, frame.layout.nb_channels)  # type: ignore[no-any-return]


def _planes(frame: Any) -> Block:
    """[frames, channels]. From 8 channels on PyAV's `planes` looks for a null pointer in vain."""
    dtype = np.dtype(format_dtypes[frame.format.name])
    channels: list[Any] = [AudioPlane(frame, number) for number in range(frame.layout.nb_channels)]
    return np.stack([np.frombuffer(plane, dtype, frame.samples) for plane in channels], axis=1)
