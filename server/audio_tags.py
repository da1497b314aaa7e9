"""Tags that stand before, between and behind the frames of an MP3 or ADTS file, and hold no sound."""

from __future__ import annotations

_ID3V2_HEADER = 10
_ID3V1_SIZE = 128
_APE_HEADER = 32


def skip_id3v2(data: bytes, at: int = 0) -> int:
    """Offset behind the ID3v2 tags at `at`, of which several may follow each other."""
    while data[at : at + 3] == b"ID3" and len(data) >= at + _ID3V2_HEADER:
        size = 0
        for byte in data[at + 6 : at + 10]:
            size = size << 7 | byte & 0x7F
        has_footer = bool(data[at + 5] & 0x10)
        at += _ID3V2_HEADER * (2 if has_footer else 1) + size
    return at


def skip_tags(data: bytes, at: int) -> int:
    """Offset behind all tags at `at`, or the end of `data` if nothing but zeros is left."""
    while (after := _skip_tag(data, at)) != at:
        at = after
    if data[at : at + 1] == b"\0" and not data[at:].strip(b"\0"):
        return len(data)
    return at


def _skip_tag(data: bytes, at: int) -> int:
    """Offset behind one tag at `at`; `at` itself if there is none."""
    if data.startswith(b"ID3", at):
        return skip_id3v2(data, at)
    if data.startswith(b"TAG", at):
        return min(at + _ID3V1_SIZE, len(data))
    if data.startswith(b"APETAGEX", at):
        return min(at + _APE_HEADER + int.from_bytes(data[at + 12 : at + 16], "little"), len(data))
    if data.startswith(b"LYRICSBEGIN", at):
        end = max(data.find(b"LYRICS200", at), data.find(b"LYRICSEND", at))
        return end + 9 if end > 0 else at
    return at
