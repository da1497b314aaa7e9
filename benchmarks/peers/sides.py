"""Who is asked without a transport: our engine, the script one at a time, the script in padded batches.

Each is an `Asker` of `wavllm bench`, so that one load generator and one clock serve all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from benchmarks.peers.questions import decoded
from benchmarks.peers.script import Script, Spoken
from server.bench.types import Exchange, Outcome, Piece, Question
from server.engine_process import EngineProcess
from server.types import (
    DecodedAudio,
    Delta,
    EngineConfig,
    Failed,
    Finished,
    GenerateRequest,
    SamplingParams,
    Usage,
)

T = TypeVar("T")
SILENCE_S = 3600.0
"""A step of a large model on a busy machine may be long; nobody restarts the engine meanwhile."""


class Side(Protocol):
    """Answers questions that it was shown before the clock ran, each by so many tokens."""

    @property
    def num_tokens(self) -> int:
        """Of every answer."""

    def take(self, questions: Sequence[Question]) -> None:
        """Do what a client does before it asks."""

    async def ask(self, question: Question, leave_after: int | None = None) -> Exchange:
        """Ask once."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the engine gave. usage: the tokens it counted."""

    exchange: Exchange
    usage: Usage


class EngineSide:
    """Our engine in a process of its own, as `wavllm serve` has it, without a transport."""

    def __init__(self, engine: EngineProcess, num_tokens: int) -> None:
        self.engine = engine
        self.num_tokens = num_tokens
        self._audio: dict[str, DecodedAudio] = {}
        self._ids = itertools.count()

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, model: Path, num_tokens: int) -> AsyncIterator[EngineSide]:
        """A running engine with its own defaults, on the CPU in float32."""
        config = EngineConfig(model, device="cpu", dtype="float32")
        engine = EngineProcess(config, heartbeat_timeout_s=SILENCE_S)
        await engine.start()
        try:
            yield cls(engine, num_tokens)
        finally:
            await engine.stop()

    def take(self, questions: Sequence[Question]) -> None:
        """Decode the clips; the sides in this process all take samples."""
        self._audio |= decoded(questions)

    async def ask(self, question: Question, leave_after: int | None = None) -> Exchange:
        """Raises the engine's error if it fails."""
        return (await self.reply(question)).exchange

    async def reply(self, question: Question) -> Reply:
        """The whole answer. Raises the engine's error if it fails."""
        audio = self._audio[question.id]
        request = GenerateRequest(
            f"{question.id}-{next(self._ids)}",
            question.prompt,
            audio.waveform,
            audio.key,
            SamplingParams(self.num_tokens),
        )
        pieces: list[Piece] = []
        async for event in self.engine.generate(request):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Delta) and event.token_ids:
                pieces.append(Piece(time.perf_counter(), event.text, event.token_ids))
            if isinstance(event, Finished):
                return Reply(_answered(pieces, event.finish_reason), event.usage)
        raise RuntimeError("the engine ended the stream without a last event")


class ScriptSide:
    """One question at a time, in the order of arrival."""

    def __init__(self, script: Script, num_tokens: int) -> None:
        self._script = script
        self.num_tokens = num_tokens
        self._spoken: dict[str, Spoken] = {}
        self._thread = ThreadPoolExecutor(1, "script")

    def take(self, questions: Sequence[Question]) -> None:
        """Decode the clips."""
        self._spoken |= spoken(questions)

    async def ask(self, question: Question, leave_after: int | None = None) -> Exchange:
        """Wait for the questions before it, then for the answer."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, question)

    def _answer(self, question: Question) -> Exchange:
        (prepared,) = self._script.prepare([self._spoken[question.id]])
        steps = Steps()
        self._script.one(prepared, self.num_tokens, steps.add)
        return steps.exchange(0)


class BatchSide:
    """Static padded batches: a batch runs to its longest answer, what arrives meanwhile waits for the next.

    max_batch: rows of a batch. wait_s: how long a batch that is not full waits for more.
    """

    def __init__(self, script: Script, num_tokens: int, *, max_batch: int, wait_s: float) -> None:
        self._script = script
        self.num_tokens = num_tokens
        self._max_batch, self._wait_s = max_batch, wait_s
        self._spoken: dict[str, Spoken] = {}
        self._waiting: asyncio.Queue[tuple[Question, asyncio.Future[Exchange]]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "batches")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[BatchSide]:
        """Batches are made inside the block; a failure of one is raised where the block ends."""
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(self._work())
            yield self
            work.cancel()

    def take(self, questions: Sequence[Question]) -> None:
        """Decode the clips."""
        self._spoken |= spoken(questions)

    async def ask(self, question: Question, leave_after: int | None = None) -> Exchange:
        """Wait for a place in a batch, then for the batch."""
        answer: asyncio.Future[Exchange] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((question, answer))
        return await answer

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await gather(self._waiting, self._max_batch, self._wait_s)
            questions = [question for question, _ in batch]
            exchanges = await loop.run_in_executor(self._thread, self._answer, questions)
            for (_, answer), exchange in zip(batch, exchanges, strict=True):
                answer.set_result(exchange)

    def _answer(self, questions: Sequence[Question]) -> list[Exchange]:
        prepared = self._script.prepare([self._spoken[question.id] for question in questions])
        steps = Steps()
        self._script.batch(prepared, self.num_tokens, steps.add)
        return [steps.exchange(row) for row in range(len(questions))]


async def gather(queue: asyncio.Queue[T], most: int, wait_s: float) -> list[T]:
    """One item at least, and what else comes until there are `most` or `wait_s` is over."""
    items = [await queue.get()]
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_s):
            while len(items) < most:
                items.append(await queue.get())
    return items


class Steps:
    """The tokens of a batch as its steps end."""

    def __init__(self) -> None:
        self._steps: list[tuple[float, list[int]]] = []

    def add(self, tokens: list[int]) -> None:
        """One step's tokens, one a row, known now."""
        self._steps.append((time.perf_counter(), tokens))

    def exchange(self, row: int) -> Exchange:
        """The answer of one row."""
        return _answered([Piece(at, "", (tokens[row],)) for at, tokens in self._steps], "length")


def spoken(questions: Sequence[Question]) -> dict[str, Spoken]:
    """Questions as the script takes them, by id."""
    audio = decoded(questions)
    return {question.id: Spoken(audio[question.id].waveform, question.prompt) for question in questions}


def _answered(pieces: Sequence[Piece], finish_reason: str) -> Exchange:
    return Exchange(Outcome.OK, time.perf_counter(), tuple(pieces), finish_reason=finish_reason)
