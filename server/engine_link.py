"""One life of one engine child, as its parent sees it: the process, and its pipe in the event loop."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Self

from server.engine.factory import safe_traceback
from server.engine_child import BOOT
from server.engine_clips import ClipSender
from server.engine_frames import FrameReader, frame
from server.engine_wire import Replies, Stop, ToChild, ToParent
from server.os_process import describe_exit, engine_environment, stop_signals_blocked
from server.types import GenerateRequest

logger = logging.getLogger(__name__)

EXIT_GRACE_S = 2.0
"""A child that closed its pipe or was told to stop gets this long before it is killed."""
EXIT_POLL_S = 0.01


class EngineLink(asyncio.Protocol):
    """A child and the messages to and from it. It belongs to the event loop, and never blocks it.

    on_message is called once per message, in order. `lost` is done once the process is gone, what it had sent
    has been delivered (but for what a failed write finds unread), and the pipe is closed; its result says how
    it ended.
    """

    def __init__(self, process: subprocess.Popen[bytes], on_message: Callable[[ToParent], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._process = process
        self._on_message = on_message
        self._clips = ClipSender()
        self._frames = FrameReader()
        self._transport: asyncio.Transport | None = None
        self._reaper: asyncio.Task[None] | None = None
        self.lost: asyncio.Future[str] = self._loop.create_future()
        self.last_heard = time.monotonic()

    @classmethod
    async def open(cls, on_message: Callable[[ToParent], None]) -> Self:
        """Start a child, from the thread that runs the loop, which must outlive it. Raises OSError."""
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = _spawn(theirs.fileno())
        except BaseException:
            ours.close()
            raise
        link = cls(process, on_message)
        try:
            await link._loop.create_unix_connection(lambda: link, sock=ours)
        except BaseException:
            ours.close()
            link.kill()
            raise
        return link

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def send(self, message: ToChild) -> None:
        """Send a message to the child; dropped if the child is gone."""
        if self._transport is None or self._transport.is_closing():
            return
        try:
            if isinstance(message, GenerateRequest):
                message = self._clips.shorten(message)
            self._transport.writelines(frame(message))
        except Exception as error:  # noqa: BLE001 - the child would look well and hear nothing
            logger.error("a message could not be sent to the engine: %s", safe_traceback(error))
            self.kill()

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

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The pipe is in the loop."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Hand over what is whole. A fault in a receiver must not close the pipe."""
        for message in self._frames.feed(data):
            if not isinstance(message, Replies):  # which another thread than the engine's sends
                self.last_heard = time.monotonic()
            try:
                self._on_message(message)
            except Exception as error:  # noqa: BLE001 - as any callback's of the loop
                logger.error("a message of the engine was not taken: %s", safe_traceback(error))

    def connection_lost(self, exc: Exception | None) -> None:
        """The child closed its end, exiting or killed; or a message could not be written, or not be read."""
        self._reaper = self._loop.create_task(self._reap(), name="engine-reaper")

    async def _reap(self) -> None:
        """Wait for the process's end; kill it if it does not come."""
        grace_ends = time.monotonic() + EXIT_GRACE_S
        while self._process.poll() is None:
            if time.monotonic() > grace_ends:
                self._process.kill()
            await asyncio.sleep(EXIT_POLL_S)
        if not self.lost.done():
            self.lost.set_result(describe_exit(self._process.returncode))


def _spawn(descriptor: int) -> subprocess.Popen[bytes]:
    """Start the child with its end of the pipe and our import path; it inherits stdout and stderr."""
    command = [sys.executable, "-c", BOOT, str(os.getpid()), str(descriptor), *sys.path]
    with stop_signals_blocked():
        return subprocess.Popen(command, pass_fds=(descriptor,), env=engine_environment())
