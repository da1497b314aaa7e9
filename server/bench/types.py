"""What the parts of a benchmark hand to each other.

Instants are `time.perf_counter()` seconds of one process; durations end in `_s`.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


class BenchError(Exception):
    """The benchmark cannot start or go on."""


class Api(enum.StrEnum):
    """Whose routes the server speaks."""

    SPEECH = "speech"
    OPENAI = "openai"


class ReferenceTime(enum.StrEnum):
    """When every question is asked alone."""

    BEFORE = "before"
    AFTER = "after"
    NONE = "none"


class Outcome(enum.StrEnum):
    """What became of a request; each has exactly one."""

    OK = "ok"
    FAILED = "failed"
    REJECTED = "rejected"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Clip:
    """An audio file. kind: what OpenAI's `format` calls it, for example "wav"."""

    name: str
    data: bytes
    seconds: float
    kind: str


@dataclass(frozen=True, slots=True)
class Question:
    """A clip and an instruction; no two of a run are the same."""

    id: str
    clip: Clip
    prompt: str


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to send.

    at_s: after the load's start. question: index. leave_share: the client leaves after this share of the
    reference's text; None: it stays. is_warmup: sent, but in no figure.
    """

    index: int
    at_s: float
    question: int
    leave_share: float | None = None
    is_warmup: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """One delta as it was read. token_ids: () where the stream tells none."""

    at: float
    text: str
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a client saw of one request.

    ended: when the last byte was read, or the failure seen. status: HTTP's, None without one. error: the kind
    of failure or the code of the refusal. detail: more on it. usage_tokens: the server's own count.
    """

    outcome: Outcome
    ended: float
    pieces: tuple[Piece, ...] = ()
    status: int | None = None
    error: str | None = None
    detail: str = ""
    finish_reason: str | None = None
    usage_tokens: int | None = None

    @property
    def text(self) -> str:
        """The answer, as far as it came."""
        return "".join(piece.text for piece in self.pieces)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The answer's ids; () where the stream told none."""
        return tuple(token for piece in self.pieces for token in piece.token_ids)

    @property
    def num_tokens(self) -> int | None:
        """Tokens of the answer, by their ids, else by the server's count; None if neither was told."""
        if not self.pieces or self.token_ids:
            return len(self.token_ids)
        return self.usage_tokens

    @property
    def first_text_at(self) -> float | None:
        """When the first text came."""
        return next((piece.at for piece in self.pieces if piece.text), None)


References = Sequence[Exchange | None]
"""Of each question its answer alone, None where there is none."""


@dataclass(frozen=True, slots=True)
class Record:
    """One request from its place in the schedule to its end.

    due: when it should have been sent. ready: when the generator got to it. sent: when it was, after waiting
    for a place under --max-concurrency.
    """

    arrival: Arrival
    due: float
    ready: float
    sent: float
    exchange: Exchange

    @property
    def lag_s(self) -> float:
        """How late the generator itself was."""
        return self.ready - self.due

    @property
    def hold_s(self) -> float:
        """How long --max-concurrency held it back."""
        return self.sent - self.ready

    @property
    def ttft_s(self) -> float | None:
        """From the scheduled send to the first text."""
        first = self.exchange.first_text_at
        return None if first is None else first - self.due

    @property
    def e2e_s(self) -> float:
        """From the scheduled send to the end."""
        return self.exchange.ended - self.due


@dataclass(frozen=True, slots=True)
class Load:
    """One rate's requests. num_sent: counted when they were sent, not from the records.

    loop_lags_s: how late a clock of the generator's process ticked, all along.
    """

    rate: float
    num_sent: int
    records: tuple[Record, ...]
    loop_lags_s: tuple[float, ...]


class Asker(Protocol):
    """Whoever sends requests: a client over HTTP, or a test's fake."""

    async def ask(self, question: Question, leave_after: int | None = None) -> Exchange:
        """Ask once, whatever happens. leave_after: disconnect after so many characters of the answer."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send where, and what to hold the answers to.

    num_requests: measured ones at each rate, unless duration_s is given. slos_ms: the bound of each figure.
    """

    server: str
    api: Api
    api_key: str | None
    model: str | None
    manifest: Path | None
    audio_root: Path | None
    audio: tuple[Path, ...]
    prompts: tuple[str, ...]
    rates: tuple[float, ...]
    num_requests: int
    duration_s: float | None
    num_warmup: int
    burstiness: float
    max_concurrency: int | None
    max_tokens: int
    seed: int
    slos_ms: dict[str, float]
    cancel_share: float
    timeout_s: float
    reference: ReferenceTime
    output: Path
