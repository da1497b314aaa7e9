"""The reference: every question asked alone, one after another. Also the server's warm-up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from server.bench.figures import stats_ms
from server.bench.types import Asker, BenchError, Exchange, Outcome, Question, References
from server.eval.types import Progress

BUSY = frozenset({429, 503})
PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Between attempts while the server is busy."""


async def ask_alone(
    asker: Asker, questions: Sequence[Question], on_progress: Progress, pause: Any = asyncio.sleep
) -> list[tuple[float, Exchange]]:
    """When each was sent, and its answer. pause: replaced in tests.

    Raises BenchError if one is not answered.
    """
    answers = []
    for number, question in enumerate(questions, 1):
        answers.append(await _ask(asker, question, pause))
        on_progress(number, len(questions), question.clip.name)
    return answers


async def _ask(asker: Asker, question: Question, pause: Any) -> tuple[float, Exchange]:
    for pause_s in (*PAUSES_S, None):
        sent = time.perf_counter()
        exchange = await asker.ask(question)
        if exchange.status not in BUSY or pause_s is None:
            break
        await pause(pause_s)
    if exchange.outcome is not Outcome.OK:
        where = f"{question.clip.name}, asked alone"
        raise BenchError(
            f"{where}: {exchange.status or exchange.outcome}: {exchange.error}: {exchange.detail}"
        )
    return sent, exchange


def reference_json(when: str, alone: Sequence[tuple[float, Exchange]]) -> dict[str, Any]:
    """What the reference was like; its times are those of a client that is alone."""
    firsts = ((sent, exchange.first_text_at) for sent, exchange in alone)
    return {
        "when": when,
        "ttft_ms": stats_ms(first - sent for sent, first in firsts if first is not None),
        "e2e_ms": stats_ms(exchange.ended - sent for sent, exchange in alone),
    }


def questions_json(questions: Sequence[Question], references: References) -> list[dict[str, Any]]:
    """Every question, with its answer alone."""
    return [
        {
            "id": question.id,
            "clip": question.clip.name,
            "audio_seconds": round(question.clip.seconds, 3),
            "prompt": question.prompt,
            "alone": None if answer is None else _answer_json(answer),
        }
        for question, answer in zip(questions, references, strict=True)
    ]


def _answer_json(answer: Exchange) -> dict[str, Any]:
    return {
        "text": answer.text,
        "token_ids": list(answer.token_ids),
        "tokens": answer.num_tokens,
        "finish_reason": answer.finish_reason,
    }
