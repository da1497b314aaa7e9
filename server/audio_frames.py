"""Formats that are a bare row of frames, MP3 and ADTS AAC: find every frame, so that none is lost unseen.

Neither format states its length, and decoders hunt silently for the next frame after damage. Walking the
headers from the first frame to the last shows a hole, and an end inside a frame, at about a microsecond a
frame. Damage inside a frame that keeps its header cannot be seen by anyone: MP3 carries no checksum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from server.audio_tags import skip_tags
from server.errors import InvalidAudio

_MPEG1_KBPS = {
    1: (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    2: (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    3: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
}
_MPEG2_KBPS = {
    1: (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    2: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    3: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MPEG1_RATES = (44100, 48000, 32000)
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)


MAX_TRIM = 10 * 1152
"""Samples: the most that an MP3's own header can have trimmed as the encoder's delay and padding."""


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """One frame: its size in bytes with the header, its samples per channel, its rate in Hz."""

    size: int
    samples: int
    rate: int


@dataclass(frozen=True, slots=True)
class FrameRow:
    """All frames of a file: their number, and samples per channel in all."""

    num_frames: int
    num_samples: int


HeaderParser = Callable[[bytes, int], FrameHeader | None]


def parse_mpeg(data: bytes, at: int) -> FrameHeader | None:
    """The MPEG-1, 2 or 2.5 audio header (ISO 11172-3, 13818-3) at `at`, or None if there is none."""
    if len(data) < at + 4 or data[at] != 0xFF or data[at + 1] & 0xE0 != 0xE0:
        return None
    version, layer = data[at + 1] >> 3 & 3, 4 - (data[at + 1] >> 1 & 3)
    bitrate_index, rate_index, padding = data[at + 2] >> 4, data[at + 2] >> 2 & 3, data[at + 2] >> 1 & 1
    if version == 1 or layer == 4 or bitrate_index in (0, 15) or rate_index == 3:
        return None
    is_mpeg1 = version == 3
    rate = _MPEG1_RATES[rate_index] >> {3: 0, 2: 1, 0: 2}[version]
    bitrate = 1000 * (_MPEG1_KBPS if is_mpeg1 else _MPEG2_KBPS)[layer][bitrate_index - 1]
    if layer == 1:
        return FrameHeader((12 * bitrate // rate + padding) * 4, 384, rate)
    samples = 576 if layer == 3 and not is_mpeg1 else 1152
    return FrameHeader(samples // 8 * bitrate // rate + padding, samples, rate)


def parse_adts(data: bytes, at: int) -> FrameHeader | None:
    """The ADTS header (ISO 13818-7) at `at`, or None if there is none."""
    if len(data) < at + 7 or data[at] != 0xFF or data[at + 1] & 0xF6 != 0xF0:
        return None
    rate_index = data[at + 2] >> 2 & 15
    size = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
    if rate_index >= len(_AAC_RATES) or size < 7:
        return None
    return FrameHeader(size, 1024 * ((data[at + 6] & 3) + 1), _AAC_RATES[rate_index])


MPEG: HeaderParser = parse_mpeg
ADTS: HeaderParser = parse_adts


def starts_with_frames(data: bytes, at: int, parse: HeaderParser) -> bool:
    """Whether two frames follow each other at `at`, or one that reaches the end exactly."""
    first = parse(data, at)
    if first is None:
        return False
    after = at + first.size
    return after == len(data) or parse(data, after) is not None


def walk_frames(data: bytes, start: int, parse: HeaderParser, name: str, max_seconds: float) -> FrameRow:
    """Visit every frame from `start` to the end of `data`, tags aside.

    Raises InvalidAudio if something else stands between two frames, if the rate changes, if the clip is
    longer than `max_seconds`, or if the last frame is cut off. A cut last frame is refused although recorders
    of radio streams leave such files: it is the only sign of a broken upload that these formats have.
    """
    at, num_frames, num_samples, rate = start, 0, 0, 0
    while (at := skip_tags(data, at)) < len(data):
        frame = parse(data, at)
        if frame is None:
            raise InvalidAudio(f"The {name} audio is corrupt or cut off: no frame where one should start.")
        if rate not in (0, frame.rate):
            raise InvalidAudio(f"The {name} audio changes its sample rate on the way; send one rate.")
        at += frame.size
        if at > len(data):
            raise InvalidAudio(f"The {name} audio is truncated: it ends inside a frame.")
        rate, num_frames, num_samples = frame.rate, num_frames + 1, num_samples + frame.samples
        if num_samples - MAX_TRIM > max_seconds * rate:
            raise InvalidAudio(f"The audio is longer than {max_seconds:g} s, the most that is taken.")
    if not num_frames:
        raise InvalidAudio(f"The {name} audio is truncated: it holds no frames, only tags.")
    return FrameRow(num_frames, num_samples)


def check_mp3(data: bytes, start: int, max_seconds: float) -> FrameRow:
    """Walk an MP3 and hold it to its own Xing or Info header, if it has one.

    Raises InvalidAudio if frames are missing, or if there are more: decoders stop at the header's count.
    """
    row = walk_frames(data, start, MPEG, "MP3", max_seconds)
    declared = _declared_frames(data, start)
    if declared is None:
        return row
    # Some encoders count the frame that carries the header, some do not.
    if row.num_frames < declared:
        raise InvalidAudio(
            f"The MP3 audio is truncated: {declared} frames are declared, {row.num_frames} are there."
        )
    if row.num_frames > declared + 1:
        raise InvalidAudio("The audio is several MP3 files end to end; send them as separate clips.")
    return row


def _declared_frames(data: bytes, start: int) -> int | None:
    """Frames that the Xing or Info header in the first frame counts, itself not among them."""
    is_mpeg1, is_mono = data[start + 1] & 8, data[start + 3] >> 6 == 3
    side_info = (17 if is_mono else 32) if is_mpeg1 else (9 if is_mono else 17)
    at = start + 4 + side_info
    has_count = data[at : at + 4] in (b"Xing", b"Info") and len(data) >= at + 12 and data[at + 7] & 1
    return int.from_bytes(data[at + 8 : at + 12], "big") if has_count else None
