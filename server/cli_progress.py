"""Progress bars on standard error; silent when it is not a terminal."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

Report = Callable[[int, int, str], None]


@contextlib.contextmanager
def progress_bar(title: str) -> Iterator[Report]:
    """A bar for the block; call what it yields with (done, total, name of the piece at hand)."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(
        *columns,
        TextColumn("{task.fields[piece]}", markup=False),  # "[/b]" may be a row's id
        console=console,
        transient=True,
        disable=not is_terminal(),
    ) as progress:
        task = progress.add_task(title, total=None, piece="")

        def report(done: int, total: int, name: str) -> None:
            progress.update(task, completed=done, total=total, piece=name)
            if done >= total:
                progress.stop()

        yield report


def is_terminal() -> bool:
    """Whether a person watches standard error."""
    return sys.stderr.isatty()
