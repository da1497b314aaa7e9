"""The process that decodes: one clip at a time, asked and answered over one socket.

Run as `python -m server.audio_worker FD LIMITS_AS_JSON`. It is a fresh interpreter and not a
`multiprocessing` process, for two reasons: a spawned one imports the parent's main module again, with all
that hangs on it; and the parent joins it at its own exit, which never ends on a child that ignores SIGTERM.

Messages, each one `Connection.send_bytes`. In: the clip. Out: a header as JSON, and after a good one the
waveform's bytes. JSON and not pickle: this process reads hostile bytes, and must not be able to make its
parent run code.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.audio_limits import AudioLimits

EXIT_OVER_MEMORY = 77
"""Exit status of a worker that ran into its memory cap."""
READY = b"ready"
_PR_SET_PDEATHSIG = 1


def main(fd: int, limits_json: str) -> None:
    """Serve clips from socket `fd` until the parent closes it or is gone."""
    _follow_parent()
    # Before numpy is loaded: its threads would only cost memory here.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    from server.audio_limits import AudioLimits

    limits = AudioLimits(**json.loads(limits_json))
    _warm_up()
    _give_up_powers(limits.max_memory_mb)
    with Connection(fd) as parent:
        _serve(parent, limits)


def _follow_parent() -> None:
    """The parent alone decides: a Ctrl-C is not for us, and its death, even by SIGKILL, is ours.

    Between decodes the closed socket says the same; during one only the kernel can.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _warm_up() -> None:
    """Use both decoders and the resampler once, so that all their modules are loaded."""
    import io

    import numpy as np
    import soundfile

    from server.audio_limits import AudioLimits
    from server.audio_readers import open_with_ffmpeg
    from server.audio_waveform import decode_waveform

    file = io.BytesIO()
    soundfile.write(file, np.zeros(4800, np.float32), 48_000, format="WAV")
    decode_waveform(file.getvalue(), AudioLimits(max_seconds=1.0))
    with open_with_ffmpeg(file.getvalue(), "warm-up", "wav") as clip:
        next(clip.blocks)


def _give_up_powers(max_memory_mb: int) -> None:
    """From here on: a cap on memory, no new file or socket, no core dump, no chatter of C libraries.

    RLIMIT_DATA counts what is really taken, private writable pages; RLIMIT_AS would count address space that
    malloc and the loader reserve and never use. With no descriptor left to give, a clip that found a way to
    refer to a file or an address could still not open it.
    """
    # mpg123 and ffmpeg write remarks about the clip to descriptor 2; Python's own tracebacks keep a copy.
    sys.stderr = os.fdopen(os.dup(2), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    os.close(null)
    max_bytes = max_memory_mb << 20
    resource.setrlimit(resource.RLIMIT_DATA, (max_bytes, max_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _serve(parent: Connection, limits: AudioLimits) -> None:
    try:
        _warm_up()  # once more: what does not work within the limits shows at the start
        parent.send_bytes(READY)
        while True:
            _answer(parent, parent.recv_bytes(), limits)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent closed the socket or is gone
    except MemoryError:
        # A C library may be left half way; only a new process is surely sound.
        os._exit(EXIT_OVER_MEMORY)


def _answer(parent: Connection, data: bytes, limits: AudioLimits) -> None:
    from server.audio_waveform import decode_waveform
    from server.errors import ServerError

    try:
        audio = decode_waveform(data, limits)
    except ServerError as error:
        refusal = {"code": error.code, "message": error.message, "param": error.param}
        parent.send_bytes(json.dumps(refusal).encode())
        return
    info = audio.info
    header = {
        "num_samples": len(audio.waveform),
        "key": audio.key.hex(),
        "info": [info.duration_s, info.sample_rate, info.channels],
    }
    parent.send_bytes(json.dumps(header).encode())
    parent.send_bytes(audio.waveform.data.cast("B"))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
