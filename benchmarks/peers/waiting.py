"""The environment of the peers: our engine's, unless the operator's says otherwise.

OpenMP's threads spin by default, which costs a multiple of the time where anything else wants the cores. The
engine's process lets them sleep (`server.os_process`); to leave the peers spinning would flatter it. That it
keeps few of oneDNN's plans holds for them too; their clips have one length, for which those are enough.
"""

from __future__ import annotations

import os
import sys

from server.bench.types import BenchError
from server.os_process import COMPUTING, computing_environment


def restart_passive() -> None:
    """Start this command again in the engine's environment, if it lacks it. Call before torch is loaded."""
    if not is_set():
        os.execve(sys.executable, sys.orig_argv, computing_environment())


def check_set() -> None:
    """Raise BenchError if the peers of this process would compute in a way that nobody chose."""
    if not is_set():
        raise BenchError(f"{', '.join(COMPUTING)}: not set; see benchmarks/peers/waiting.py")


def is_set() -> bool:
    """Whether the environment says how to compute."""
    return COMPUTING.keys() <= os.environ.keys()


def settings() -> dict[str, str]:
    """What the environment says, for the row."""
    return {name: os.environ[name] for name in COMPUTING if name in os.environ}
