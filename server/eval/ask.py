"""Ask all questions, some at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence

from server.eval.types import Answer, Answerer, Row

Record = Callable[[Row, Answer], None]


async def ask_all(rows: Sequence[Row], answerer: Answerer, concurrency: int, record: Record) -> None:
    """Ask each row once, at most `concurrency` at a time; `record` gets each answer as it comes.

    Raises what the answerer raises; whoever is cancelled leaves no question running.
    """
    queue = iter(rows)
    workers = [
        asyncio.create_task(_work(queue, answerer, record)) for _ in range(min(concurrency, len(rows)))
    ]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)


async def _work(queue: Iterator[Row], answerer: Answerer, record: Record) -> None:
    for row in queue:
        record(row, await answerer.answer(row))
