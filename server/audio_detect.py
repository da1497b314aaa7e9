"""What a byte string is, by its first bytes alone: one of the audio formats taken here, or a refusal's name.

Names, file endings and declared content types are never asked: a client may be wrong or hostile.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import enum
import re

from server.audio_frames import ADTS, MPEG, starts_with_frames
from server.audio_tags import skip_id3v2


class AudioFormat(enum.StrEnum):
    """A container that can be decoded; the value is its name in messages."""

    WAV = "WAV"
    FLAC = "FLAC"
    OGG = "Ogg"
    MP3 = "MP3"
    AAC = "AAC"
    MP4 = "MP4/M4A"
    MATROSKA = "WebM/Matroska"


# Looked up now: Python loads a codec's module at its first use, and a decoding process may open no file then.
_DECODERS = {name: codecs.getincrementaldecoder(name) for name in ("utf-8", "utf-16")}

ACCEPTED = "WAV, FLAC, OGG (Vorbis, Opus), MP3, M4A/AAC, WebM"
"""The formats as told to clients."""

_PREFIXES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"BM", "a BMP image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"%PDF-", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"PK\x05\x06", "a ZIP archive"),
    (b"\x1f\x8b", "gzip data"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ\x00", "xz data"),
    (b"\x28\xb5\x2f\xfd", "zstandard data"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\x7fELF", "an ELF program"),
    (b"MZ", "a Windows program"),
    (b"\x00asm", "a WebAssembly module"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"MThd", "a MIDI file, which holds notes and no sound"),
    (b"caff", "CAF audio"),
    (b".snd", "AU audio"),
    (b"riff\x2e\x91\xcf\x11", "Wave64 audio"),
    (b"#!AMR", "AMR audio"),
    (b"MPCK", "Musepack audio"),
    (b"MP+", "Musepack audio"),
    (b"MAC ", "Monkey's Audio"),
    (b"wvpk", "WavPack audio"),
    (b"TTA1", "TTA audio"),
    (b"DSD ", "DSD audio"),
    (b"FRM8", "DSD audio"),
    (b"\x0b\x77", "AC-3 audio"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "ASF (WMA or WMV)"),
    (b"FLV\x01", "an FLV video"),
    (b"\x00\x00\x01\xba", "an MPEG program stream"),
)

_TEXTS: tuple[tuple[str, str], ...] = (
    (r"<!doctype html|<html", "an HTML page"),
    (r"<\?xml|<svg", "XML"),
    (r"#extm3u", "a playlist (M3U), which holds no sound"),
    (r"ffconcat version", "a playlist (ffconcat), which holds no sound"),
    (r"v=0\r?\n", "a session description (SDP), which holds no sound"),
    (r"data:[a-z0-9/.+-]*(;[^,]*)?,", "a data: URL as text; send the bytes themselves"),
    (r"https?://\S+\s*$", "a URL as text; send the bytes themselves"),
    (r"[\[{]", "JSON"),
)


def detect_format(data: bytes) -> AudioFormat | None:
    """The container that `data` begins with, behind any ID3 tags; None if it is not one taken here."""
    head = data[skip_id3v2(data) :][:64] if data.startswith(b"ID3") else data[:64]
    if head.startswith((b"RIFF", b"RIFX", b"RF64", b"BW64")) and head[8:12] in (b"WAVE", b""):
        return AudioFormat.WAV
    if head.startswith(b"fLaC"):
        return AudioFormat.FLAC
    if head.startswith(b"OggS"):
        return AudioFormat.OGG
    if head.startswith(b"\x1aE\xdf\xa3"):
        return AudioFormat.MATROSKA
    if head[4:8] in (b"ftyp", b"moov", b"mdat") and head[8:12] not in (b"avif", b"heic", b"mif1"):
        return AudioFormat.MP4
    return _detect_frames(data)


def _detect_frames(data: bytes) -> AudioFormat | None:
    """MP3 and ADTS have no magic bytes: two frames in a row are asked for, or an ID3 tag before MP3."""
    start = skip_id3v2(data)
    if starts_with_frames(data, start, ADTS):
        return AudioFormat.AAC
    if start or starts_with_frames(data, start, MPEG):
        return AudioFormat.MP3
    return None


def describe(data: bytes) -> str:
    """Name what is not audio: "a PNG image", "plain text", at worst "unrecognised binary data"."""
    for prefix, name in _PREFIXES:
        if data.startswith(prefix):
            return name
    return _describe_boxed(data) or _describe_text(data) or "unrecognised binary data"


def _describe_boxed(data: bytes) -> str | None:
    """Kinds whose name stands a few bytes in."""
    if data[:4] == b"RIFF":
        return {b"AVI ": "an AVI video", b"WEBP": "a WebP image"}.get(
            data[8:12], "a RIFF file without WAVE audio"
        )
    if data[:4] == b"FORM" and data[8:12] in (b"AIFF", b"AIFC"):
        return "AIFF audio"
    if data[4:8] == b"ftyp":
        return "an AVIF or HEIF image"
    if data[:1] == b"G" and data[188:189] == b"G":
        return "an MPEG transport stream"
    if data[257:262] == b"ustar":
        return "a TAR archive"
    return None


def _describe_text(data: bytes) -> str | None:
    text = _as_text(data[:4096])
    if text is None:
        return None
    start = text.lstrip("\ufeff \t\r\n").lower()
    for pattern, name in _TEXTS:
        if re.match(pattern, start):
            return name
    return _describe_base64(text) or "plain text"


def _as_text(head: bytes) -> str | None:
    """`head` as text, or None if it holds control characters or is in no encoding of Unicode."""
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    try:
        # Incremental, because the cut at 4096 may fall inside a character.
        text = _DECODERS[encoding]().decode(head)
    except UnicodeDecodeError:
        return None
    return None if re.search(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]", text) else text


def _describe_base64(text: str) -> str | None:
    letters = "".join(text.split())[:64]
    try:
        head = base64.b64decode(letters[: len(letters) // 4 * 4], validate=True)
    except (binascii.Error, ValueError):
        return None
    found = detect_format(head + bytes(64)) if len(head) >= 12 else None
    return f"base64 text (of {found} audio); send the decoded bytes" if found else None
