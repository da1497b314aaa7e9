"""The steps of the curriculum as processes of their own, each started once what it needs is done."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping

NEEDS: Mapping[str, tuple[str, ...]] = {
    "speech": (),
    "copy": (),
    "whisper": ("speech",),
    "language": ("copy",),
    "acoustic": ("speech",),
    "align": ("whisper", "language", "acoustic"),
    "single": ("align",),
    "joint": ("single",),
}
STEPS = tuple(NEEDS)
"""In an order that serves all needs."""
POLL_SECONDS = 0.1

Command = Callable[[str], list[str]]


def run_together(command: Command) -> None:
    """Run all steps. command: the program and arguments of a step.

    Raises SystemExit with a step's exit code if one fails; the others are then ended.
    """
    done: set[str] = set()
    running: dict[str, subprocess.Popen[bytes]] = {}
    try:
        while len(done) < len(STEPS):
            for step in STEPS:
                if step not in done and step not in running and done.issuperset(NEEDS[step]):
                    running[step] = subprocess.Popen(command(step))
            done |= _ended(running)
            time.sleep(POLL_SECONDS)
    finally:
        for process in running.values():
            process.terminate()
            process.wait()


def _ended(running: dict[str, subprocess.Popen[bytes]]) -> set[str]:
    """Steps that ended well since the last look, taken out of `running`."""
    codes = {step: process.poll() for step, process in running.items()}
    for step, code in codes.items():
        if code:
            raise SystemExit(f"{step} failed with exit code {code}")
    ended = {step for step, code in codes.items() if code == 0}
    for step in ended:
        del running[step]
    return ended
