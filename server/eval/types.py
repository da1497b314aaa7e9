"""What the parts of an evaluation hand to each other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

Progress = Callable[[int, int, str], None]
"""Called with (done, total, a word on what happens)."""


class Bar(Protocol):
    """Makes progress bars."""

    def __call__(self, title: str) -> AbstractContextManager[Progress]:
        """A bar for a block."""


class EvalError(Exception):
    """The evaluation cannot start or go on; the message has one line per fault."""


@dataclass(frozen=True, slots=True)
class Row:
    """One question of a manifest.

    key: stands for the row's contents, unique in its manifest, the same in every run. audio: a file.
    audio_mark: changes when the file does.
    """

    key: str
    id: str
    task: str
    prompt: str
    reference: str
    audio: Path
    audio_mark: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one question: a text, or the error that came instead (then text is "").

    finish_reason: "stop" or "length". latency_ms: from the request to the end of its answer.
    """

    text: str = ""
    finish_reason: str | None = None
    latency_ms: float = 0.0
    error: str | None = None


class Answerer(Protocol):
    """Whoever answers: a server, or an engine in this process."""

    async def answer(self, row: Row) -> Answer:
        """Ask once. Raises EvalError if asking further rows is pointless."""
