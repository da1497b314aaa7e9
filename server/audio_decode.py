"""Decode clips in a bounded pool of processes that can be killed: bytes -> 16 kHz mono float32.

A clip that crashes, hangs or bloats its decoder costs its own request and one process, which is replaced.
Nothing here imports the decoders themselves; they live in the children.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from server.audio_limits import AudioLimits
from server.audio_process import DecoderProcess
from server.errors import DeadlineExceeded, EngineError, InvalidAudio, NotReady, ServerError
from server.types import DecodedAudio

__all__ = ["AudioDecoder", "AudioLimits", "decode_audio"]

_START_TIMEOUT_S = 60.0
_logger = logging.getLogger(__name__)
_T = TypeVar("_T")


def decode_audio(data: bytes, limits: AudioLimits) -> DecodedAudio:
    """Decode one clip in this very process, without its protection: for tools and tests.

    Raises UnsupportedAudio if the bytes are not audio, InvalidAudio if they are not a good clip.
    """
    from server.audio_waveform import decode_waveform  # loads ffmpeg, which a server's main process need not

    return decode_waveform(data, limits)


@dataclass(slots=True, eq=False)
class _Slot:
    """A place in the pool; empty while its process is being replaced, or if that failed."""

    process: DecoderProcess | None = None

    @property
    def is_alive(self) -> bool:
        return self.process is not None and self.process.is_alive


class AudioDecoder:
    """`num_workers` decoding processes. Callers beyond that wait in order of arrival, at most `max_wait_s`
    seconds; admission bounds how many they are.

    One thread per process waits on its socket; killing the process is what wakes it, so that cancellation and
    the time limit need no second mechanism.
    """

    def __init__(self, limits: AudioLimits, num_workers: int = 2, max_wait_s: float = math.inf) -> None:
        self.limits = limits
        self._max_wait_s = max_wait_s
        self._slots = [_Slot() for _ in range(num_workers)]
        self._idle: deque[_Slot] = deque()
        self._num_idle = asyncio.Semaphore(0)
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="audio-decode")
        self._revivals: set[asyncio.Task[None]] = set()
        self._is_running = False

    @property
    def num_alive(self) -> int:
        """Processes that run at this moment."""
        return sum(slot.is_alive for slot in self._slots)

    async def start(self) -> None:
        """Start the processes; returns when all answer. Raises EngineError if one cannot start."""
        self._is_running = True
        try:
            await asyncio.gather(*(self._fill(slot) for slot in self._slots))
        except BaseException:
            await self.stop()
            raise
        for slot in self._slots:
            self._put_back(slot)

    async def decode(self, data: bytes) -> DecodedAudio:
        """Decode one clip as soon as a process is free. Cancelling this kills the decode.

        Raises InvalidAudio or UnsupportedAudio for the clip's own faults, taking too long among them,
        DeadlineExceeded if no process gets free in time, EngineError if the process was killed from outside,
        NotReady before `start` and after `stop`.
        """
        try:
            async with asyncio.timeout(self._max_wait_s):
                slot = await self._take()
        except TimeoutError as error:
            raise DeadlineExceeded(f"No audio decoder was free for {self._max_wait_s:g} s.") from error
        try:
            return await self._decode_in(slot, data)
        finally:
            self._release(slot)

    async def stop(self) -> None:
        """End all processes and fail whoever waits, with NotReady. Idempotent."""
        self._is_running = False
        self._num_idle.release()  # wakes the first in the queue, who wakes the next
        for task in self._revivals:
            task.cancel()
        await asyncio.gather(*self._revivals, return_exceptions=True)
        for slot in self._slots:
            if slot.process is not None:
                # A thread of its own: those of the pool may be waiting for this very process.
                await asyncio.to_thread(slot.process.close)
        self._threads.shutdown()

    async def _take(self) -> _Slot:
        """Wait for an idle slot, first come first served."""
        self._check_running()
        await self._num_idle.acquire()
        try:
            self._check_running()
        except NotReady:
            self._num_idle.release()
            raise
        return self._idle.popleft()

    def _check_running(self) -> None:
        if not self._is_running:
            raise NotReady("The audio decoder is not running.")

    def _put_back(self, slot: _Slot) -> None:
        self._idle.append(slot)
        self._num_idle.release()

    def _release(self, slot: _Slot) -> None:
        """Give a slot back after a decode, through a revival if its process is gone or was killed."""
        if slot.is_alive or not self._is_running:
            self._put_back(slot)
            return
        task = asyncio.create_task(self._revive(slot))
        self._revivals.add(task)
        task.add_done_callback(self._revivals.discard)

    async def _revive(self, slot: _Slot) -> None:
        """Replace a dead process now, so that the next clip need not wait for it.

        A failure is left to the next clip, which tries again and can tell its client.
        """
        try:
            await self._fill(slot)
        except ServerError as error:
            _logger.warning("audio decoder not replaced: %s", error.message)
        finally:
            self._put_back(slot)

    async def _fill(self, slot: _Slot) -> None:
        """Put a new process into a slot. Raises EngineError if it does not come up."""
        if slot.process is not None:
            await self._run(slot.process, slot.process.close, _START_TIMEOUT_S)
        self._check_running()
        try:
            slot.process = DecoderProcess(self.limits)
        except OSError as error:
            raise EngineError(f"The audio decoder cannot be started: {error.strerror}.") from error
        try:
            await self._run(slot.process, slot.process.wait_ready, _START_TIMEOUT_S)
        except TimeoutError as error:
            raise EngineError(f"The audio decoder did not start in {_START_TIMEOUT_S:g} s.") from error

    async def _decode_in(self, slot: _Slot, data: bytes) -> DecodedAudio:
        if slot.process is None or not slot.is_alive:
            await self._fill(slot)
        assert slot.process is not None
        seconds = self.limits.max_decode_s
        try:
            return await self._run(slot.process, partial(slot.process.decode, data), seconds)
        except TimeoutError as error:
            raise InvalidAudio(f"The audio took longer than {seconds:g} s to decode.") from error

    async def _run(self, process: DecoderProcess, call: Callable[[], _T], seconds: float) -> _T:
        """Run `call` on `process` in a thread. Kills the process if it is cancelled or takes too long."""
        self._check_running()
        future = asyncio.get_running_loop().run_in_executor(self._threads, call)
        try:
            async with asyncio.timeout(seconds):
                return await future
        except EngineError:
            self._check_running()  # if `stop` killed it, say so
            raise
        finally:
            if future.cancelled():
                process.kill()
