"""Makers of clips for tests: every format the server takes, encoded in memory, nothing read from disk."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import av
import numpy as np
import numpy.typing as npt
import soundfile

Samples = npt.NDArray[np.float32]


def tone(seconds: float, rate: int = 16_000, channels: int = 1, hz: float = 1000.0) -> Samples:
    """A sine at half of full scale: [T] float32 for one channel, else [T, channels]."""
    time = np.arange(round(seconds * rate)) / rate
    wave = (0.5 * np.sin(2 * np.pi * hz * time)).astype(np.float32)
    return wave if channels == 1 else np.repeat(wave[:, None], channels, axis=1)


def noise(seconds: float, rate: int = 16_000, seed: int = 0) -> Samples:
    """White noise at a fifth of full scale, [T] float32: what compresses badly."""
    rng = np.random.default_rng(seed)
    return (0.2 * rng.uniform(-1, 1, round(seconds * rate))).astype(np.float32)


def encode_soundfile(samples: Samples, rate: int, container: str, subtype: str) -> bytes:
    """Encode with libsndfile, for example ("FLAC", "PCM_24") or ("WAVEX", "FLOAT")."""
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    return file.getvalue()


def encode_av(
    samples: Samples, rate: int, container: str, codec: str, options: dict[str, str] | None = None
) -> bytes:
    """Encode with ffmpeg, for example ("ipod", "aac") or ("webm", "libopus"); 1, 2, 6 or 8 channels."""
    file = io.BytesIO()
    columns = samples.reshape(len(samples), -1)
    layout = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}[columns.shape[1]]
    with av.open(file, "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=rate, layout=layout)
        resampler = av.AudioResampler(stream.format, layout, rate, frame_size=stream.frame_size or 1024)
        # Packed, since PyAV cannot make a planar frame of 8 channels.
        frame = av.AudioFrame.from_ndarray(columns.reshape(1, -1), format="flt", layout=layout)
        frame.sample_rate = rate
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()


def mov_in_channel_order(samples: Samples, rate: int, labels: tuple[int, ...]) -> bytes:
    """A QuickTime file that names its channels one by one, in an order of its own (1 is left, 2 right)."""
    data = encode_av(samples, rate, "mov", "pcm_s16le")
    path = [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"sowt", b"chan"]
    places = [data.index(name) for name in path]
    described = b"".join(struct.pack(">5I", label, 0, 0, 0, 0) for label in labels)
    box = struct.pack(">I4sIIII", 24 + len(described), b"chan", 0, 0, 0, len(labels)) + described
    start, grown = places[-1] - 4, bytearray(data)
    (size,) = struct.unpack_from(">I", data, start)
    for place in places[:-1]:
        (before,) = struct.unpack_from(">I", data, place - 4)
        struct.pack_into(">I", grown, place - 4, before + len(box) - size)
    return bytes(grown[:start]) + box + bytes(grown[start + size :])


def wav(seconds: float = 1.0, rate: int = 16_000, channels: int = 1, hz: float = 1000.0) -> bytes:
    """A sine as 16-bit WAV, the plainest good clip."""
    return encode_soundfile(tone(seconds, rate, channels, hz), rate, "WAV", "PCM_16")


def silent_video(seconds: float = 0.5) -> bytes:
    """An MP4 with a video track and no audio track."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(round(10 * seconds)):
            pixels = np.zeros((32, 32, 3), np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        output.mux(stream.encode(None))
    return file.getvalue()


def streamed_wav(samples: Samples, rate: int, declared: int = 0xFFFFFFFF) -> bytes:
    """16-bit WAV whose header was written before the length was known, as ffmpeg writes to a pipe."""
    data = (samples * 32767).astype("<i2").tobytes()
    fmt = struct.pack("<HHIIHH", 1, 1, rate, 2 * rate, 2, 16)
    riff = 0xFFFFFFFF if declared == 0xFFFFFFFF else min(declared + 36, 0xFFFFFFFF)
    header = struct.pack("<4sI4s4sI", b"RIFF", riff, b"WAVE", b"fmt ", len(fmt)) + fmt
    return header + struct.pack("<4sI", b"data", declared) + data


Encoder = Callable[[Samples, int], bytes]


def _with_soundfile(container: str, subtype: str) -> Encoder:
    return lambda samples, rate: encode_soundfile(samples, rate, container, subtype)


def _with_av(container: str, codec: str) -> Encoder:
    return lambda samples, rate: encode_av(samples, rate, container, codec)


LOSSLESS: dict[str, Encoder] = {
    **{
        f"wav {s}": _with_soundfile("WAV", s)
        for s in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE")
    },
    **{f"wavex {s}": _with_soundfile("WAVEX", s) for s in ("PCM_16", "PCM_24", "FLOAT")},
    "rf64": _with_soundfile("RF64", "PCM_16"),
    "flac 16": _with_soundfile("FLAC", "PCM_16"),
    "flac 24": _with_soundfile("FLAC", "PCM_24"),
    "m4a alac": _with_av("ipod", "alac"),
    "mkv pcm": _with_av("matroska", "pcm_s16le"),
}
"""Containers that keep every sample to within their own step; any rate."""

LOSSY: dict[str, Encoder] = {
    "wav mu-law": _with_soundfile("WAV", "ULAW"),
    "wav adpcm": _with_soundfile("WAV", "IMA_ADPCM"),
    "ogg vorbis": _with_soundfile("OGG", "VORBIS"),
    "ogg opus": _with_av("ogg", "libopus"),
    "mp3": _with_soundfile("MP3", "MPEG_LAYER_III"),
    "m4a aac": _with_av("ipod", "aac"),
    "adts aac": _with_av("adts", "aac"),
    "webm opus": _with_av("webm", "libopus"),
}
"""Containers whose codec changes the samples; 16 and 48 kHz work in all of them."""

FORMATS: dict[str, Encoder] = LOSSLESS | LOSSY
