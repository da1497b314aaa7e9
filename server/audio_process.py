"""One decoding process as its parent sees it. The methods block: call them in a thread."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from dataclasses import asdict
from multiprocessing import Pipe
from pathlib import Path

from server.audio_limits import AudioLimits
from server.audio_worker import EXIT_OVER_MEMORY
from server.clip_memory import new_waveform
from server.errors import EngineError, InvalidAudio, ServerError, UnsupportedAudio
from server.types import AudioInfo, DecodedAudio

_REFUSALS: dict[str, type[ServerError]] = {e.code: e for e in (InvalidAudio, UnsupportedAudio)}
_CRASHES = {-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL}
_PACKAGE_ROOT = Path(__file__).resolve().parents[1]


class DecoderProcess:
    """A child running `server.audio_worker`, and the socket to it.

    Make it on the event loop's thread: the kernel kills the child when the thread that made it ends, so that
    must be the one that lives as long as the pool.
    """

    def __init__(self, limits: AudioLimits) -> None:
        self._limits = limits
        self._busy = threading.Lock()
        self._was_killed = False
        self._connection, theirs = Pipe()
        with theirs:
            fd = theirs.fileno()
            command = [sys.executable, "-m", "server.audio_worker", str(fd), json.dumps(asdict(limits))]
            self._process = subprocess.Popen(
                command,
                cwd=_PACKAGE_ROOT,  # where -m looks first: the child runs the very code that its parent runs
                pass_fds=(fd,),
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # a Ctrl-C in the terminal may come before the child can ignore it
            )

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the child still runs and is of use; never blocks."""
        return not self._was_killed and self._process.poll() is None

    def wait_ready(self) -> None:
        """Return when the child has loaded its decoders. Raises EngineError if it dies first."""
        with self._busy:
            try:
                self._connection.recv_bytes()
            except (EOFError, OSError) as error:
                status = self._process.wait()
                cap = f"{self._limits.max_memory_mb} MB are too few"
                reason = cap if status == EXIT_OVER_MEMORY else f"exit status {status}"
                raise EngineError(f"The audio decoder did not start: {reason}.") from error

    def decode(self, data: bytes) -> DecodedAudio:
        """Have the child decode one clip.

        Raises InvalidAudio or UnsupportedAudio as the child says, and if the clip crashed it or ran it out of
        memory; EngineError if it died of anything else.
        """
        with self._busy:
            try:
                self._connection.send_bytes(data)
                return self._receive()
            except (EOFError, OSError) as error:
                raise self._explain_death(self._process.wait()) from error
            except ServerError:
                raise
            except BaseException:
                self.kill()  # its answer is still on the way, and would be taken for the next clip's
                raise

    def _receive(self) -> DecodedAudio:
        header = json.loads(self._connection.recv_bytes())
        if "code" in header:
            raise _REFUSALS[header["code"]](header["message"], param=header["param"])
        waveform = new_waveform(header["num_samples"])
        self._connection.recv_bytes_into(waveform)
        return DecodedAudio(waveform, bytes.fromhex(header["key"]), AudioInfo(*header["info"]))

    def _explain_death(self, status: int) -> ServerError:
        if status == EXIT_OVER_MEMORY:
            return InvalidAudio(f"The audio takes more than {self._limits.max_memory_mb} MB to decode.")
        if status in _CRASHES:
            return InvalidAudio("The audio is corrupt: it crashes its decoder.")
        return EngineError("The audio decoder was killed while it read this clip; the clip may be fine.")

    def kill(self) -> None:
        """End the child now, whatever it does. Any thread may call this; never blocks."""
        self._was_killed = True
        self._process.kill()

    def close(self) -> None:
        """Kill the child, wait until it is gone and free the socket. Idempotent."""
        self.kill()
        self._process.wait()
        with self._busy:  # a decode that was under way has seen the end of the socket by now
            self._connection.close()
