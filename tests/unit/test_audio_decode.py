"""The pool: a clip that kills, hangs or bloats its process costs its own request and nothing else."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import psutil
import pytest
import pytest_asyncio

from server.audio_decode import AudioDecoder, AudioLimits, decode_audio
from server.errors import DeadlineExceeded, EngineError, InvalidAudio, NotReady, UnsupportedAudio
from tests.audio_samples import FORMATS, encode_av, mov_in_channel_order, noise, silent_video, tone, wav

LIMITS = AudioLimits(max_seconds=30.0)
SLOW = b"ID3\x03\0\0\0\0\0\0" * 2_000_000
"""A row of empty tags: seconds of work for nothing."""


@pytest_asyncio.fixture
async def decoder() -> AsyncIterator[AudioDecoder]:
    pool = AudioDecoder(LIMITS, num_workers=1)
    await pool.start()
    yield pool
    await pool.stop()


def children() -> list[psutil.Process]:
    """The decoding processes of this test, in order of age."""
    return [c for c in psutil.Process().children() if "server.audio_worker" in c.cmdline()]


async def start_decode(pool: AudioDecoder, data: bytes) -> asyncio.Task:
    """A decode that has reached its process."""
    task = asyncio.create_task(pool.decode(data))
    await asyncio.sleep(0.05)
    assert not task.done()
    return task


async def test_the_pool_decodes_as_this_process_does(decoder: AudioDecoder) -> None:
    data = wav(2.0, 44_100, channels=2)
    expected, audio = decode_audio(data, LIMITS), await decoder.decode(data)
    np.testing.assert_array_equal(audio.waveform, expected.waveform)
    assert (audio.key, audio.info) == (expected.key, expected.info)
    assert audio.waveform.flags.writeable


async def test_refusals_cross_the_process_boundary(decoder: AudioDecoder) -> None:
    (before,) = children()
    with pytest.raises(UnsupportedAudio, match="plain text") as caught:
        await decoder.decode(b"hello" * 9)
    assert caught.value.param == "audio"
    with pytest.raises(InvalidAudio, match="empty"):
        await decoder.decode(b"")
    assert children() == [before]


@pytest.mark.parametrize("name", FORMATS)
async def test_each_format_within_the_limits_of_the_process(decoder: AudioDecoder, name: str) -> None:
    """Decoders load parts of themselves late, when the process can open no file any more."""
    data = FORMATS[name](noise(0.5, 48_000), 48_000)
    assert (await decoder.decode(data)).key == decode_audio(data, LIMITS).key
    with pytest.raises(InvalidAudio):
        await decoder.decode(data[: len(data) // 2])


@pytest.mark.parametrize(
    ("container", "codec"), [("ipod", "aac"), ("ogg", "libopus"), ("webm", "libopus"), ("mov", "pcm_s16le")]
)
@pytest.mark.parametrize("channels", [6, 8])
async def test_surround_sound_is_mixed_down(
    decoder: AudioDecoder, container: str, codec: str, channels: int
) -> None:
    """From 8 channels on PyAV read addresses that were none: a good clip ended its process."""
    samples = np.repeat(tone(0.5, 48_000)[:, None], channels, axis=1)
    data = encode_av(samples, 48_000, container, codec)
    audio = await decoder.decode(data)
    assert audio.info.channels == channels
    assert np.abs(audio.waveform[4000:]).max() == pytest.approx(np.abs(samples).max(), rel=0.2)


@pytest.mark.parametrize("labels", [(1, 2), (2, 1)])
async def test_the_order_of_channels_is_the_files_own_affair(
    decoder: AudioDecoder, labels: tuple[int, ...]
) -> None:
    """PyAV freed an order out of the usual twice, which ended the process."""
    samples = np.stack([noise(0.5, seed=1), noise(0.5, seed=2)], axis=1) / 4
    audio = await decoder.decode(mov_in_channel_order(samples, 16_000, labels))
    np.testing.assert_allclose(audio.waveform, samples.mean(1), atol=1e-4)


async def test_no_kind_of_text_needs_a_file_to_be_named(decoder: AudioDecoder) -> None:
    for data in ("some text".encode("utf-16"), "<html>".encode("utf-16-be"), b"\xff\xfe\xd9", b"\xfe\xff"):
        with pytest.raises(UnsupportedAudio):
            await decoder.decode(data)


async def test_a_video_without_sound(decoder: AudioDecoder) -> None:
    with pytest.raises(UnsupportedAudio, match="video without an audio track"):
        await decoder.decode(silent_video())


async def test_a_large_upload_fits_the_default_memory(decoder: AudioDecoder) -> None:
    data = wav(29.0, 192_000, channels=2)
    assert len(data) > 20 << 20
    assert (await decoder.decode(data)).info.duration_s == 29.0
    assert children()[0].memory_info().rss < 200 << 20


async def test_the_process_is_light_and_has_no_powers(decoder: AudioDecoder) -> None:
    (child,) = children()
    mapped = {Path(m.path).name for m in child.memory_maps()}
    assert any("sndfile" in name for name in mapped)
    assert not any("torch" in name for name in mapped)
    assert child.rlimit(psutil.RLIMIT_NOFILE) == (0, 0)
    assert child.rlimit(psutil.RLIMIT_DATA) == (1024 << 20, 1024 << 20)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
async def test_signals_are_for_the_parent(decoder: AudioDecoder, signum: signal.Signals) -> None:
    (child,) = children()
    child.send_signal(signum)
    await decoder.decode(wav())
    assert children() == [child]


async def test_no_more_clips_at_once_than_processes_first_come_first_served(decoder: AudioDecoder) -> None:
    finished: list[int] = []

    async def decode(index: int) -> None:
        await decoder.decode(wav(5.0))
        finished.append(index)

    await asyncio.gather(*(decode(index) for index in range(8)))
    assert finished == list(range(8))
    assert len(children()) == 1


@pytest.mark.parametrize(
    ("signum", "error", "message"),
    [(signal.SIGKILL, EngineError, "killed"), (signal.SIGSEGV, InvalidAudio, "crashes its decoder")],
)
async def test_a_dead_process_fails_its_own_request_alone(
    decoder: AudioDecoder, signum: signal.Signals, error: type[Exception], message: str
) -> None:
    (child,) = children()
    dying, waiting = await start_decode(decoder, SLOW), asyncio.create_task(decoder.decode(wav()))
    child.send_signal(signum)
    with pytest.raises(error, match=message):
        await dying
    assert (await waiting).info.duration_s == 1.0
    assert decoder.num_alive == 1
    assert child not in children()


async def test_a_dead_process_is_replaced_at_once(decoder: AudioDecoder) -> None:
    dying = await start_decode(decoder, SLOW)
    children()[0].kill()
    with pytest.raises(EngineError):
        await dying
    async with asyncio.timeout(5):
        while decoder.num_alive == 0:
            await asyncio.sleep(0.01)


async def test_an_idle_process_that_died_is_replaced_before_it_costs_a_request(decoder: AudioDecoder) -> None:
    (child,) = children()
    child.kill()
    child.wait(5)
    assert decoder.num_alive == 0
    assert (await decoder.decode(wav())).info.duration_s == 1.0
    assert decoder.num_alive == 1


@pytest.mark.parametrize("is_stopped", [False, True])
async def test_cancelling_a_decode_frees_its_place(decoder: AudioDecoder, is_stopped: bool) -> None:
    (child,) = children()
    task = await start_decode(decoder, SLOW)
    if is_stopped:
        child.send_signal(signal.SIGSTOP)  # not even a frozen process holds its place
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5):
        assert (await decoder.decode(wav())).info.duration_s == 1.0
    assert child not in children()


async def test_cancelling_in_the_queue_leaves_the_others_alone(decoder: AudioDecoder) -> None:
    running = asyncio.create_task(decoder.decode(wav(20.0)))
    gone, last = asyncio.create_task(decoder.decode(wav())), asyncio.create_task(decoder.decode(wav(2.0)))
    await asyncio.sleep(0)
    (child,) = children()
    gone.cancel()
    assert (await running).info.duration_s == 20.0
    assert (await last).info.duration_s == 2.0
    assert gone.cancelled()
    assert children() == [child]


async def test_a_conversation_that_broke_off_is_not_taken_up_again(
    decoder: AudioDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the process still sends would be taken for the next client's clip."""
    first, second = wav(0.3, hz=500.0), wav(0.6, hz=900.0)
    with monkeypatch.context() as patched:
        patched.setattr(Connection, "recv_bytes_into", Mock(side_effect=MemoryError))
        with pytest.raises(MemoryError):
            await decoder.decode(first)
    for data in (second, first, second):
        assert (await decoder.decode(data)).key == decode_audio(data, LIMITS).key


async def test_the_time_limit() -> None:
    pool = AudioDecoder(AudioLimits(max_seconds=30.0, max_decode_s=0.2), num_workers=1)
    await pool.start()
    try:
        started = time.monotonic()
        with pytest.raises(InvalidAudio, match=r"longer than 0\.2 s to decode"):
            await pool.decode(SLOW)
        assert time.monotonic() - started < 1.0
        assert (await pool.decode(wav())).info.duration_s == 1.0
    finally:
        await pool.stop()


async def test_the_memory_limit() -> None:
    pool = AudioDecoder(AudioLimits(max_seconds=30.0, max_memory_mb=96), num_workers=1)
    await pool.start()
    try:
        with pytest.raises(InvalidAudio, match="more than 96 MB"):
            await pool.decode(noise(20.0, 192_000).tobytes() * 4)
        assert (await pool.decode(wav())).info.duration_s == 1.0
    finally:
        await pool.stop()


async def test_too_little_memory_to_start_is_an_error_at_start() -> None:
    pool = AudioDecoder(AudioLimits(max_seconds=30.0, max_memory_mb=1), num_workers=2)
    start, early = asyncio.create_task(pool.start()), asyncio.create_task(pool.decode(wav()))
    with pytest.raises(EngineError, match="1 MB are too few"):
        await start
    with pytest.raises(NotReady):
        await early
    assert not children()


def test_the_parent_loads_no_decoder() -> None:
    """Nor does the worker load torch: it is a fresh interpreter that imports `server.audio_*` alone."""
    heavy = "{'av', 'soundfile', 'soxr', 'librosa', 'torch', 'transformers'}"
    for module, allowed in (("audio_decode", "set()"), ("audio_waveform", "{'av', 'soundfile', 'soxr'}")):
        code = f"import sys, server.{module}; assert {heavy} & set(sys.modules) == {allowed}"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


async def test_who_gets_no_process_in_time_is_told_and_leaves_no_trace() -> None:
    pool = AudioDecoder(LIMITS, num_workers=1, max_wait_s=0.2)
    await pool.start()
    busy = asyncio.create_task(pool.decode(SLOW))
    await asyncio.sleep(0.05)
    with pytest.raises(DeadlineExceeded, match=r"0\.2 s"):
        await pool.decode(wav())
    busy.cancel()
    await asyncio.wait([busy])
    for _ in range(2):
        await asyncio.sleep(0.5)  # the killed process is replaced
        assert (await pool.decode(wav())).info.sample_rate == 16_000
    await pool.stop()


async def test_stop_ends_running_and_waiting_requests() -> None:
    pool = AudioDecoder(LIMITS, num_workers=2)
    with pytest.raises(NotReady):
        await pool.decode(wav())
    await pool.start()
    assert pool.num_alive == 2
    tasks = [asyncio.create_task(pool.decode(SLOW)) for _ in range(5)]
    await asyncio.sleep(0.05)
    await pool.stop()
    await pool.stop()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [NotReady] * 5
    assert pool.num_alive == 0
    assert not children()
    with pytest.raises(NotReady):
        await pool.decode(wav())


PARENT = """
import asyncio, os, sys
from server.audio_decode import AudioDecoder, AudioLimits
from tests.unit.test_audio_decode import SLOW, children

async def main():
    pool = AudioDecoder(AudioLimits(max_seconds=30.0), num_workers=2)
    await pool.start()
    asyncio.create_task(pool.decode(SLOW))
    await asyncio.sleep(0.05)
    print(*(child.pid for child in children()), flush=True)
    if sys.argv[1] == "forget":
        raise SystemExit
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.mark.parametrize("end", ["kill", "forget"])
def test_processes_die_with_their_parent(end: str) -> None:
    """One of them idle, one in the middle of a decode; the parent killed, or ending without `stop`."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, end],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parents[2],
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        if end == "kill":
            os.kill(parent.pid, signal.SIGKILL)
        parent.wait(5)
    deadline = time.monotonic() + 1.0
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "a decoding process outlives its parent"
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
