"""One life of one engine child, as its parent sees it: the process, its pipe, and a thread each way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing import Pipe
from typing import Any

from server.engine.factory import safe_traceback
from server.engine_child import BOOT
from server.engine_clips import ClipSender
from server.engine_wire import Channel, Replies, Stop, ToChild, ToParent
from server.os_process import computing_environment, describe_exit, stop_signals_blocked
from server.types import GenerateRequest

logger = logging.getLogger(__name__)

EXIT_GRACE_S = 2.0
"""A child that closed its pipe or was told to stop gets this long before it is killed."""


class EngineLink:
    """Starts a child and carries messages. Create it in the event loop's thread, which must outlive it.

    on_message is called in the loop, once per message, in order. `lost` is done once the process is gone,
    everything it had sent has been delivered, and the pipe is closed; its result says how it ended.
    Nothing here blocks the loop: large messages are pickled and written by the writer thread.
    """

    def __init__(self, on_message: Callable[[ToParent], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_message = on_message
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self.last_heard = time.monotonic()
        ours, theirs = Pipe(duplex=True)
        self._channel: Channel[ToChild, ToParent] = Channel(ours)
        with theirs:
            self._process = _spawn(theirs.fileno())
        self._outbox: queue.SimpleQueue[ToChild | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="engine-writer", daemon=True)
        self._writer.start()
        threading.Thread(target=self._read, name="engine-reader", daemon=True).start()

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def send(self, message: ToChild) -> None:
        """Queue a message for the child; dropped if the child is gone."""
        self._outbox.put(message)

    def kill(self) -> None:
        """End the child now; `lost` follows."""
        self._process.kill()

    async def stop(self) -> None:
        """Ask the child to exit, kill it after `EXIT_GRACE_S`, return when it is gone.

        A stuck driver can hold a killed process: it is left behind after as long again.
        """
        self.send(Stop())
        await asyncio.wait([self.lost], timeout=EXIT_GRACE_S)
        self.kill()
        await asyncio.wait([self.lost], timeout=EXIT_GRACE_S)

    def _write(self) -> None:
        clips = ClipSender()
        try:
            while (message := self._outbox.get()) is not None:
                if isinstance(message, GenerateRequest):
                    message = clips.shorten(message)
                self._channel.send(message)
        except OSError:
            pass  # the child is gone: the reader thread reports it
        except Exception as error:  # noqa: BLE001 - the child would look well and hear nothing
            logger.error("engine writer failed: %s", safe_traceback(error))
            self.kill()

    def _read(self) -> None:
        """The reader thread; it outlives the child and cleans up after it."""
        try:
            while True:
                message = self._channel.receive()
                if not isinstance(message, Replies):  # which another thread than the engine's sends
                    self.last_heard = time.monotonic()
                self._post(self._on_message, message)
        except (EOFError, OSError):
            pass  # the child closed its end, by exiting or by being killed
        finally:
            returncode = self._reap()
            self._outbox.put(None)
            self._writer.join()
            self._channel.close()
            self._post(self._set_lost, describe_exit(returncode))

    def _reap(self) -> int:
        try:
            return self._process.wait(EXIT_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def _post(self, callback: Callable[[Any], None], argument: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(callback, argument)

    def _set_lost(self, how: str) -> None:
        if not self.lost.done():
            self.lost.set_result(how)


def _spawn(descriptor: int) -> subprocess.Popen[bytes]:
    """Start the child with its end of the pipe and our import path; it inherits stdout and stderr."""
    command = [sys.executable, "-c", BOOT, str(os.getpid()), str(descriptor), *sys.path]
    with stop_signals_blocked():
        return subprocess.Popen(command, pass_fds=(descriptor,), env=computing_environment())
