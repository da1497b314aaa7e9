"""A progress bar on standard error, and a plain line now and then where that is no terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_SECONDS = 30.0


class Advance(Protocol):
    """Tells of `steps` more, with a note to show beside."""

    def __call__(self, steps: int, note: str = "") -> None: ...


@contextmanager
def track(title: str, total: int, done: int = 0) -> Iterator[Advance]:
    """Yield `advance(steps, note)`. done: steps of an earlier run."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain(title, total, done)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(steps: int, note: str = "") -> None:
            bar.update(task, advance=steps, note=note)

        yield advance


def _plain(title: str, total: int, done: int) -> Advance:
    shown = time.monotonic()

    def advance(steps: int, note: str = "") -> None:
        nonlocal done, shown
        done += steps
        if done >= total or time.monotonic() - shown >= PLAIN_SECONDS:
            shown = time.monotonic()
            sys.stderr.write(f"{title}: {done}/{total} {note}\n")
            sys.stderr.flush()

    return advance
