"""The pages of an Ogg file (RFC 3533): none damaged, none missing, one stream with its end.

Decoders skip damaged pages and play on, so that a hole goes unseen; the checksums and numbers show it.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from server.errors import InvalidAudio, UnsupportedAudio

_HEADER = 27
_FIRST, _LAST = 2, 4
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_CODECS = ((b"\x01vorbis", "vorbis"), (b"OpusHead", "opus"), (b"\x7fFLAC", "flac"))
_OTHERS = ((b"\x80theora", "Theora video"), (b"Speex   ", "Speex"), (b"fishead", "Skeleton metadata"))


@dataclass(frozen=True, slots=True)
class _Page:
    flags: int
    serial: int
    number: int
    body: bytes


def check_ogg(data: bytes) -> str:
    """Check every page; returns the codec, "vorbis", "opus" or "flac".

    Raises InvalidAudio if a page is damaged, missing or cut off, if the end-of-stream page is not there, or
    if there are several streams, chained or side by side; UnsupportedAudio for other codecs.
    """
    pages = _walk(data)
    page = first = next(pages)
    codec = _codec(first.body)
    for number, page in enumerate(pages, first.number + 1):
        if page.serial != first.serial or page.flags & _FIRST:
            raise InvalidAudio("The Ogg file holds several streams; send one clip with one audio track.")
        if page.number != number:
            raise InvalidAudio("The Ogg audio is corrupt: a page is missing.")
    if not page.flags & _LAST:
        raise InvalidAudio("The Ogg audio is truncated: its end-of-stream page is missing.")
    return codec


def _walk(data: bytes) -> Iterator[_Page]:
    at = 0
    while at < len(data):
        if data[at : at + 5] != b"OggS\0":
            raise InvalidAudio("The Ogg audio is corrupt: no page where one should start.")
        end = _page_end(data, at)
        if end > len(data):
            raise InvalidAudio("The Ogg audio is truncated: it ends inside a page.")
        flags, serial, number, checksum = struct.unpack_from("<B8xIII", data, at + 5)
        if _checksum(data, at, end) != checksum:
            raise InvalidAudio("The Ogg audio is corrupt: the checksum of a page is wrong.")
        yield _Page(flags, serial, number, data[at + _HEADER + data[at + 26] : end])
        at = end


def _page_end(data: bytes, at: int) -> int:
    if len(data) < at + _HEADER:
        return len(data) + 1
    num_segments = data[at + 26]
    lacing = data[at + _HEADER : at + _HEADER + num_segments]
    return at + _HEADER + num_segments + sum(lacing)


def _checksum(data: bytes, at: int, end: int) -> int:
    """Ogg's CRC-32 of a page with its checksum field zeroed.

    It is zlib's polynomial with the bits the other way round, no initial value and no final inversion, so
    zlib computes it on bytes that are reversed bit by bit.
    """
    page = data[at : at + 22] + bytes(4) + data[at + 26 : end]
    crc = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return int.from_bytes(crc.to_bytes(4, "little").translate(_REVERSED), "big")


def _codec(packet: bytes) -> str:
    for magic, codec in _CODECS:
        if packet.startswith(magic):
            return codec
    for magic, name in _OTHERS:
        if packet.startswith(magic):
            raise UnsupportedAudio(f"The Ogg file starts with {name}; only Vorbis, Opus and FLAC are taken.")
    raise UnsupportedAudio("The Ogg file holds no codec known here; only Vorbis, Opus and FLAC are taken.")
