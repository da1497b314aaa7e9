"""The child process of `EngineProcess`: builds the core, steps it in the main thread, listens in another.

Started with `python -c BOOT`, not with multiprocessing: the parent's `__main__` is never imported again,
so no front end is loaded here, and no resource tracker is left behind.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading

from server import logs
from server.engine.factory import Core, build_core, safe_traceback
from server.engine.loop import run_engine
from server.engine_clips import ClipReceiver
from server.engine_frames import Channel
from server.engine_wire import (
    Abort,
    Build,
    LoadFailed,
    Loading,
    Ready,
    Replies,
    Stop,
    ToChild,
    ToParent,
)
from server.errors import EngineError
from server.os_process import (
    die_with_parent,
    ignore_stop_signals,
    keep_workspace,
    spare_from_collection,
)
from server.types import Event, Failed, GenerateRequest

BOOT = (
    "import sys; sys.path[:] = sys.argv[3:]; from server.engine_child import main; "
    "main(int(sys.argv[1]), int(sys.argv[2]))"
)
"""Program of the child. Arguments: parent's pid, pipe's descriptor, then the parent's `sys.path`."""

logger = logging.getLogger(__name__)


def main(parent_pid: int, descriptor: int) -> None:
    """Entry point of the child; exits with status 1 if the core could not be built or broke down."""
    die_with_parent(parent_pid)
    ignore_stop_signals()
    keep_workspace()
    os.set_inheritable(descriptor, False)
    sys.exit(EngineChild(Channel(socket.socket(fileno=descriptor))).run())


class EngineChild:
    """One engine behind one pipe. The main thread runs it; the receiver thread takes requests."""

    def __init__(self, channel: Channel[ToParent, ToChild]) -> None:
        self._channel = channel
        self._clips = ClipReceiver()
        self._core: Core | None = None
        self._stopping = threading.Event()

    def run(self) -> int:
        """Build, report, step until told to stop. Returns the exit status."""
        build = self._channel.receive()
        if not isinstance(build, Build):
            raise TypeError(f"the first message must be Build, not {type(build).__name__}")
        if build.log is not None:
            logs.configure(*build.log)
        threading.Thread(target=self._receive, name="receiver", daemon=True).start()
        try:
            core = build_core(build.factory, build.config, self._report_loading)
        except EngineError as error:
            logger.debug("load failed", exc_info=True)
            self._send(LoadFailed(error.message))
            return 1
        return self._serve(core)

    def _serve(self, core: Core) -> int:
        self._core = core
        spare_from_collection()
        self._send(Ready(core.info))
        try:
            run_engine(core, self._send, self._stopping)
        except EngineError:
            return 1  # logged already; the parent ends the requests and starts another child
        return 0

    def _report_loading(self, done: int, total: int, name: str) -> None:
        self._send(Loading(done, total, name))

    def _send(self, message: ToParent) -> None:
        try:
            self._channel.send(message)
        except OSError:
            os._exit(0)  # the parent is gone, and with it everybody who waits for an answer

    def _receive(self) -> None:
        """The receiver thread. Ends the whole process if it cannot go on: an engine must not be deaf."""
        try:
            while self._handle(self._channel.receive()):
                pass
        except (EOFError, OSError):
            os._exit(0)  # as above
        except Exception as error:  # noqa: BLE001 - a thread's end would go unnoticed
            logger.error("engine receiver failed: %s", safe_traceback(error))
            os._exit(1)

    def _handle(self, message: ToChild) -> bool:
        """Act on one message; False after the last one."""
        match message:
            case GenerateRequest():
                self._send(Replies(self._submit(message)))
            case Abort(request_id) if self._core is not None:
                self._core.abort(request_id)
            case Stop() if self._core is not None:
                self._stopping.set()
                return False
            case Stop():
                os._exit(0)  # still loading: there is nothing to end in good order
        return True

    def _submit(self, request: GenerateRequest) -> tuple[Event, ...]:
        try:
            request = self._clips.restore(request)
            if self._core is None:
                return (Failed(request.request_id, EngineError("the engine is not loaded")),)
            return self._core.submit(request)
        except Exception as error:  # noqa: BLE001 - one request must not take the others with it
            logger.error("submission failed: %s", safe_traceback(error))
            return (Failed(request.request_id, EngineError("the engine could not take this request")),)
