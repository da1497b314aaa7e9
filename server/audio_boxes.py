"""Containers of nested boxes, MP4 and Matroska/WebM: every box must end inside the file, and be of one clip.

ffmpeg plays what it finds of a truncated file; the sizes of the boxes show that something is missing.
"""

from __future__ import annotations

from server.errors import InvalidAudio

_SEGMENT, _CLUSTER, _EBML = 0x18538067, 0x1F43B675, 0x1A45DFA3


def check_mp4(data: bytes) -> None:
    """Walk the top-level boxes (ISO 14496-12). Raises InvalidAudio on a box that is cut off, on a file
    without its index (moov), or on two files end to end."""
    at, kinds = 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        header = 8
        if size == 1:
            size, header = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        elif size == 0:
            size = len(data) - at
        if size < header or at + size > len(data):
            raise InvalidAudio("The MP4/M4A audio is truncated or corrupt: a box reaches past the end.")
        kinds.append(data[at + 4 : at + 8])
        at += size
    if b"moov" not in kinds:
        raise InvalidAudio("The MP4/M4A audio is truncated: its index (the moov box) is missing.")
    if kinds.count(b"moov") > 1 or kinds.count(b"ftyp") > 1:
        raise InvalidAudio("The audio is several MP4 files end to end; send them as separate clips.")


def check_matroska(data: bytes) -> None:
    """Walk the EBML elements (RFC 8794), into the segment and its clusters. Raises InvalidAudio on an element
    that is cut off, or on two files end to end.

    Live recorders (a browser's MediaRecorder) leave the sizes of segment and clusters unknown; whatever
    stands inside has a size, so the walk goes into them and never needs theirs.
    """
    at, num_headers = 0, 0
    while at < len(data):
        kind, after_id = _vint(data, at, keep_marker=True)
        size, body = _vint(data, after_id, keep_marker=False)
        is_unknown = size == (1 << 7 * (body - after_id)) - 1
        num_headers += kind == _EBML
        if kind in (_SEGMENT, _CLUSTER) and (is_unknown or body + size <= len(data)):
            at = body
        elif is_unknown or body + size > len(data):
            raise InvalidAudio(
                "The WebM/Matroska audio is truncated or corrupt: an element reaches past the end."
            )
        else:
            at = body + size
    if num_headers != 1:
        raise InvalidAudio(
            "The audio is several WebM/Matroska files end to end; send them as separate clips."
        )


def _vint(data: bytes, at: int, *, keep_marker: bool) -> tuple[int, int]:
    """The variable-length number at `at` and the offset behind it; ids keep their length marker."""
    first = data[at] if at < len(data) else 0
    length = 9 - first.bit_length()
    if first == 0 or at + length > len(data):
        raise InvalidAudio(
            "The WebM/Matroska audio is truncated or corrupt: an element reaches past the end."
        )
    value = int.from_bytes(data[at : at + length], "big")
    return value if keep_marker else value & ((1 << 7 * length) - 1), at + length
