"""The chunks of a WAV file: is all the sound there that the header promises?

libsndfile reads what it finds and shortens the length in silence, so the promise is checked here first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from server.errors import InvalidAudio

_UNKNOWN32 = 0xFFFFFFFF
_UNKNOWN64 = 0xFFFFFFFFFFFFFFFF
_SOX_UNKNOWN = 0x7FFFF000
_ARECORD_UNKNOWN = 0x80000000
_LEAST_BAD_RATE = 2**31
"""Hz; libsndfile takes such rates for negative ones and says so in its own terms."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One chunk: its four letters, where its body starts, and the size that it declares."""

    name: bytes
    start: int
    size: int


def complete_wav(data: bytes) -> bytes:
    """`data` itself, or with its length filled in if its header was written before the length was known.

    Programs that write to a pipe cannot go back to the header: ffmpeg leaves 0xFFFFFFFF there, others 0, sox
    0x7FFFF000 rounded down to whole frames, arecord 0x80000000. Such a clip reaches to the end of the bytes.
    A data chunk that declares less than there is is followed by other chunks, as is usual.

    Raises InvalidAudio if the data chunk declares more bytes than there are, if a chunk is missing, or for a
    sample rate that cannot be.
    """
    order = ">" if data.startswith(b"RIFX") else "<"
    chunks = {chunk.name: chunk for chunk in _walk(data, order)}
    if b"fmt " not in chunks or chunks[b"fmt "].size < 16:
        raise InvalidAudio("The WAV audio is corrupt or truncated: it has no complete format chunk.")
    if b"data" not in chunks:
        raise InvalidAudio("The WAV audio is truncated: it has no data chunk.")
    fmt, body = chunks[b"fmt "], chunks[b"data"]
    rate, block_align = struct.unpack_from(order + "I4xH", data, fmt.start + 4)
    if not 0 < rate < _LEAST_BAD_RATE:
        raise InvalidAudio(f"The WAV audio's sample rate is {rate} Hz, which no audio has.")
    declared, available = _declared_size(data, order, chunks), len(data) - body.start
    if _is_placeholder(data, order, body, declared, block_align):
        return _with_length(data, order, fmt, body, block_align)
    if declared > available:
        raise InvalidAudio(
            f"The WAV audio is truncated: {declared} bytes of sound are declared, {available} are there."
        )
    _refuse_second_clip(data, body.start + declared)
    return data


def _walk(data: bytes, order: str) -> Iterator[_Chunk]:
    """Chunks up to the first data chunk."""
    at = 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from(order + "4sI", data, at)
        yield _Chunk(name, at + 8, size)
        if name == b"data":
            return
        at += 8 + size + size % 2


def _declared_size(data: bytes, order: str, chunks: dict[bytes, _Chunk]) -> int:
    """Bytes in the data chunk; RF64 keeps the real number in its ds64 chunk."""
    size = chunks[b"data"].size
    ds64 = chunks.get(b"ds64")
    if size != _UNKNOWN32 or ds64 is None or len(data) < ds64.start + 16:
        return size
    wide: int = struct.unpack_from(order + "Q", data, ds64.start + 8)[0]
    return _UNKNOWN32 if wide in (0, _UNKNOWN64) else wide


def _is_placeholder(data: bytes, order: str, body: _Chunk, declared: int, block_align: int) -> bool:
    """Whether `declared` is what writers leave when they do not know the length."""
    if declared == 0:
        riff_end = 8 + struct.unpack_from(order + "I", data, 4)[0]
        # A RIFF size that counts something behind an empty data chunk means that the chunk is really empty.
        return len(data) > body.start and not body.start < riff_end <= len(data)
    sox = _SOX_UNKNOWN // max(block_align, 1) * max(block_align, 1)
    return declared in (_UNKNOWN32, _ARECORD_UNKNOWN, _SOX_UNKNOWN, sox)


def _with_length(data: bytes, order: str, fmt: _Chunk, body: _Chunk, block_align: int) -> bytes:
    """The same format and sound under a plain RIFF header that states the length."""
    size = len(data) - body.start
    if block_align and size % block_align:
        raise InvalidAudio("The WAV audio is truncated: it ends inside a sample.")
    parts = (b"fmt ", data[fmt.start : fmt.start + fmt.size + fmt.size % 2])
    format_chunk = struct.pack(order + "4sI", parts[0], fmt.size) + parts[1]
    riff = b"RIFX" if order == ">" else b"RIFF"
    header = struct.pack(order + "4sI4s", riff, 4 + len(format_chunk) + 8 + size, b"WAVE")
    return b"".join((header, format_chunk, struct.pack(order + "4sI", b"data", size), data[body.start :]))


def _refuse_second_clip(data: bytes, end: int) -> None:
    """Two WAV files end to end: libsndfile would answer for the first one only."""
    end += end % 2
    if data[end : end + 4] in (b"RIFF", b"RIFX", b"RF64") and data[end + 8 : end + 12] == b"WAVE":
        raise InvalidAudio("The audio is several WAV files end to end; send them as separate clips.")
