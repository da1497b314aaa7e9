"""No audio is dropped silently: what is not whole, or not audio, is refused with a reason."""

from __future__ import annotations

import base64
import io
import struct

import av
import numpy as np
import pytest

from server.audio_decode import AudioLimits, decode_audio
from server.errors import InvalidAudio, ServerError, UnsupportedAudio
from tests.audio_samples import FORMATS, encode_soundfile, noise, silent_video, streamed_wav, tone, wav

LIMITS = AudioLimits(max_seconds=5.0)

NOT_AUDIO = {
    "plain text": b"hello, this is no clip. " * 9,
    "UTF-16": "hello, this is no clip".encode("utf-16"),
    "JSON": b'  {"audio": 1}',
    "HTML": b"\n<!DOCTYPE html><html></html>",
    "XML": b'<?xml version="1.0"?><a/>',
    "PNG": b"\x89PNG\r\n\x1a\n" + bytes(99),
    "JPEG": b"\xff\xd8\xff\xe0" + bytes(99),
    "PDF": b"%PDF-1.7\n",
    "ZIP": b"PK\x03\x04" + bytes(99),
    "gzip": b"\x1f\x8b\x08" + bytes(99),
    "M3U": b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
    "ffconcat": b"ffconcat version 1.0\nfile /etc/hostname\n",
    "SDP": b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\n",
    "base64": base64.b64encode(wav(0.2)),
    "data: URL": b"data:audio/wav;base64,UklGRg==",
    "URL": b"https://example.com/clip.wav\n",
    "AVI": b"RIFF\x00\x00\x00\x00AVI LIST",
    "AIFF": b"FORM\x00\x00\x00\x00AIFFCOMM",
    "MIDI": b"MThd\x00\x00\x00\x06",
    "video without an audio track": silent_video(),
    "transport stream": (b"G" + bytes(187)) * 3,
    "unrecognised": np.random.default_rng(0).bytes(5000),
    "zeros": bytes(5000),
}


@pytest.mark.parametrize("name", NOT_AUDIO)
def test_bytes_that_are_not_audio_are_named(name: str) -> None:
    expected = {"UTF-16": "plain text", "zeros": "unrecognised"}.get(name, name)
    with pytest.raises(UnsupportedAudio, match=expected) as caught:
        decode_audio(NOT_AUDIO[name], LIMITS)
    assert caught.value.param == "audio"


def refusal(data: bytes, limits: AudioLimits = LIMITS) -> str:
    """The message with which `data` is refused as a bad clip."""
    with pytest.raises(InvalidAudio) as caught:
        decode_audio(data, limits)
    assert caught.value.param == "audio"
    return caught.value.message


def test_no_bytes() -> None:
    assert "empty" in refusal(b"")


def test_samples_whose_squares_would_overflow() -> None:
    samples = np.zeros((16_000, 1), dtype=np.float32)
    samples[100] = -2.0**31  # somebody's int32, as floats
    assert decode_audio(encode_soundfile(samples, 16_000, "WAV", "FLOAT"), LIMITS)
    samples[100] = -1e19
    assert "beyond 1e+10" in refusal(encode_soundfile(samples, 16_000, "WAV", "FLOAT"))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.99, -1, -7])
def test_truncated_clips_are_refused(name: str, keep: float) -> None:
    data = FORMATS[name](noise(1.5, 48_000), 48_000)
    with pytest.raises(ServerError) as caught:
        decode_audio(data[: int(keep if keep < 0 else keep * len(data))], LIMITS)
    assert isinstance(caught.value, InvalidAudio)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "adts aac"])
def test_files_end_to_end_are_refused(name: str) -> None:
    data = FORMATS[name](tone(0.5, 48_000), 48_000)
    refusal(data + data)


@pytest.mark.parametrize("name", ["ogg vorbis", "ogg opus", "flac 16"])
def test_formats_with_checksums_show_every_changed_byte(name: str) -> None:
    data = FORMATS[name](noise(1.0, 48_000), 48_000)
    for at in range(len(data) // 2, len(data) // 2 + 40):
        refusal(data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :])


@pytest.mark.parametrize("name", ["mp3", "adts aac", "m4a aac", "webm opus"])
def test_a_hole_in_the_middle_is_refused(name: str) -> None:
    data = FORMATS[name](noise(2.0, 48_000), 48_000)
    middle = len(data) // 2
    refusal(data[:middle] + np.random.default_rng(1).bytes(1500) + data[middle + 1500 :])
    refusal(data[:middle] + data[middle + 1500 :])


@pytest.mark.parametrize("declared", [32_002, 64_000, 0x7FFFFFFF, 0xFFFFFFFE])
def test_wav_that_promises_more_than_it_has(declared: int) -> None:
    assert "truncated" in refusal(streamed_wav(tone(1.0), 16_000, declared))


def test_rf64_that_promises_more_than_it_has() -> None:
    data = bytearray(encode_soundfile(tone(1.0), 16_000, "RF64", "PCM_16"))
    struct.pack_into("<Q", data, 28, 64_000)
    assert "truncated" in refusal(bytes(data))


def test_wav_stream_cut_inside_a_sample() -> None:
    assert "inside a sample" in refusal(streamed_wav(tone(1.0), 16_000)[:-1])


def test_wav_with_an_empty_data_chunk_before_others() -> None:
    empty = encode_soundfile(tone(0.0), 16_000, "WAV", "PCM_16") + b"LIST\x04\0\0\0INFO"
    empty = empty[:4] + struct.pack("<I", len(empty) - 8) + empty[8:]
    assert "no samples" in refusal(empty)


@pytest.mark.parametrize("name", ["ogg vorbis", "ogg opus"])
def test_ogg_without_its_last_page(name: str) -> None:
    data = FORMATS[name](noise(3.0, 48_000), 48_000)
    assert "end-of-stream" in refusal(data[: data.rindex(b"OggS")])


def test_mp3_with_fewer_frames_than_its_header_counts() -> None:
    data = FORMATS["mp3"](noise(1.0, 48_000), 48_000)
    frame = len(data) // 43
    cuts = [cut for cut in range(len(data) - 5 * frame, len(data)) if data[cut : cut + 2] == data[:2]]
    assert cuts
    assert "declared" in refusal(data[: cuts[0]])


def test_m4a_without_its_index() -> None:
    data = FORMATS["m4a aac"](tone(1.0), 16_000)
    assert "moov" in refusal(data.replace(b"moov", b"free"))


def test_several_audio_tracks() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as output:
        for stream in [output.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(2)]:
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
            frame.sample_rate = 16_000
            output.mux([*stream.encode(frame), *stream.encode(None)])
    assert "2 audio tracks" in refusal(file.getvalue())


def test_lengths_outside_the_limits() -> None:
    assert "0.099875 s long; at least 0.1 s" in refusal(wav(0.0999))
    assert "no samples" in refusal(wav(0.0))
    assert decode_audio(wav(0.1), LIMITS).info.duration_s == 0.1
    assert decode_audio(wav(5.0), LIMITS).info.duration_s == 5.0
    assert "longer than 5 s" in refusal(wav(5.001))


@pytest.mark.parametrize("rate", [7_999, 192_001])
def test_rates_outside_the_limits(rate: int) -> None:
    assert str(rate) in refusal(wav(0.5, rate))


@pytest.mark.parametrize("rate", [0, 1, 655_350, 2**31, 2**32 - 1])
def test_rates_that_cannot_be(rate: int) -> None:
    clip = bytearray(wav(0.5, 16_000))
    clip[24:28] = rate.to_bytes(4, "little")
    message = refusal(bytes(clip))
    assert str(rate) in message
    assert "SF_INFO" not in message


def test_too_many_channels() -> None:
    assert decode_audio(wav(0.2, channels=64), LIMITS).info.channels == 64
    assert "65 channels" in refusal(wav(0.2, channels=65))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("rate", [16_000, 48_000, 192_000])
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_samples_that_are_not_numbers(bad: float, rate: int, place: float) -> None:
    samples = np.zeros((rate, 2))
    samples[int(place * (rate - 1)), 1] = bad
    assert "NaN or infinite" in refusal(encode_soundfile(samples, rate, "WAV", "DOUBLE"))


@pytest.mark.parametrize("name", FORMATS)
def test_a_small_file_of_long_silence_is_refused(name: str) -> None:
    silence = np.zeros(20 * 48_000, np.float32)
    assert "longer than 5 s" in refusal(FORMATS[name](silence, 48_000))


def test_flac_of_unknown_length_is_refused_while_decoding() -> None:
    data = bytearray(FORMATS["flac 16"](np.zeros(60 * 16_000, np.float32), 16_000))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    assert "longer than 5 s" in refusal(bytes(data))
    assert decode_audio(bytes(data), AudioLimits(max_seconds=60.0)).info.duration_s == 60.0


def test_an_mp3_whose_first_frame_is_shorter_than_a_header_in_it_would_be() -> None:
    frame = bytes([0xFF, 0xFF, 0x14, 0]) + bytes(28)  # Layer I, 32 bytes
    assert refusal(b"ID3\x04\0\0\0\0\0\0" + frame + b"TAG?Xing")
