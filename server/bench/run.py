"""A benchmark from plan to results: the reference, then one load after another."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from server.bench.alone import ask_alone, questions_json, reference_json
from server.bench.figures import row_figures
from server.bench.load import Offer
from server.bench.questions import Asked, load_questions
from server.bench.report import RESULTS, SCHEMA, prepare_directory, remarks_on, write_pages, write_results
from server.bench.schedule import Arrivals, only_asked
from server.bench.setup import setup_json
from server.bench.types import (
    Api,
    Arrival,
    Asker,
    BenchError,
    Exchange,
    Load,
    Plan,
    Record,
    References,
    ReferenceTime,
)
from server.eval.types import Bar, Progress

EXTRA = ("matplotlib", "httpx")


def check_extra() -> None:
    """Raise BenchError if a library that only the benchmark needs is missing."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise BenchError(f"bench needs {', '.join(missing)}: run `pip install -e '.[eval]'`")


async def bench(plan: Plan, bar: Bar) -> dict[str, Any]:
    """Run the plan and write its files; the content of results.json. Raises BenchError.

    results.json is written after each rate, so that an interruption costs only the rate at hand.
    """
    check_extra()
    if (plan.output / RESULTS).exists():
        raise BenchError(f"{plan.output}: holds results already; use another --output")
    check_measured(plan)
    from server.bench.client import HttpAsker

    setup = setup_json(sys.argv)
    async with contextlib.aclosing(
        HttpAsker(plan.server, plan.api, plan.api_key, timeout_s=plan.timeout_s)
    ) as asker:
        server = await asker.describe()
        prepare_directory(plan.output)
        model = server["model"] or {}
        with bar("Reading clips") as on_progress:
            asked = load_questions(plan, model.get("max_audio_seconds"), on_progress)
        asked, loads = scheduled(plan, asked)
        # OpenAI's servers want their own model named.
        name = plan.model or (model.get("id") if plan.api is Api.OPENAI else None)
        asker.prepare(asked.questions, model=name, max_tokens=plan.max_tokens)
        return await Run(plan, asker, asked, loads, setup, server, bar).all()


def check_measured(plan: Plan) -> None:
    """Raise BenchError if some rate would have no request that is in its figures."""
    for rate in plan.rates:
        arrivals = _arrivals(plan, num_questions=1).at_rate(rate)
        if all(arrival.is_warmup for arrival in arrivals):
            raise BenchError(
                f"rate {rate:g}: {len(arrivals)} requests arrive within {plan.duration_s} s, none after "
                f"the warm-up of {plan.num_warmup}: give a longer --duration or a smaller --warmup"
            )


def scheduled(plan: Plan, asked: Asked) -> tuple[Asked, list[list[Arrival]]]:
    """The questions that the plan's loads ask, and these loads: of a large set most may never be asked."""
    process = _arrivals(plan, len(asked.questions))
    used, loads = only_asked([process.at_rate(rate) for rate in plan.rates])
    return asked.only(used), loads


def _arrivals(plan: Plan, num_questions: int) -> Arrivals:
    return Arrivals(
        plan.num_requests,
        num_questions,
        plan.seed,
        burstiness=plan.burstiness,
        duration_s=plan.duration_s,
        num_warmup=plan.num_warmup,
        cancel_share=plan.cancel_share,
    )


@dataclass(slots=True)
class Run:
    """One benchmark as it goes on. arrivals: of each rate of the plan."""

    plan: Plan
    asker: Asker
    asked: Asked
    arrivals: list[list[Arrival]]
    setup: dict[str, Any]
    server: dict[str, Any]
    bar: Bar
    _alone: list[tuple[float, Exchange]] = field(default_factory=list)
    _loads: list[Load] = field(default_factory=list)

    async def all(self) -> dict[str, Any]:
        """Everything, in order; the results."""
        if self.plan.reference is ReferenceTime.BEFORE:
            await self._ask_alone()
        for rate, arrivals in zip(self.plan.rates, self.arrivals, strict=True):
            self._loads.append(await self._offer(rate, arrivals))
            write_results(self.results(is_complete=False), self.plan.output)
        if self.plan.reference is ReferenceTime.AFTER:
            await self._ask_alone()
        results = self.results(is_complete=True)
        write_results(results, self.plan.output)
        write_pages(results, self.plan.output)
        return results

    async def _ask_alone(self) -> None:
        with self.bar("Asking alone") as on_progress:
            self._alone = await ask_alone(self.asker, self.asked.questions, on_progress)

    async def _offer(self, rate: float, arrivals: list[Arrival]) -> Load:
        with self.bar(f"Rate {rate:g}/s") as on_progress:
            count = _Count(len(arrivals), on_progress)
            offer = Offer(
                self.asker, self.asked.questions, self._references, self.plan.max_concurrency, count.add
            )
            return await offer.run(rate, arrivals)

    @property
    def _references(self) -> References:
        if not self._alone:
            return [None] * len(self.asked.questions)
        return [exchange for _, exchange in self._alone]

    def results(self, *, is_complete: bool) -> dict[str, Any]:
        """The content of results.json so far."""
        questions, references = self.asked.questions, self._references
        rows = [row_figures(load, questions, references, self.plan.slos_ms) for load in self._loads]
        when = self.plan.reference.value
        return {
            "schema": SCHEMA,
            "is_complete": is_complete,
            "setup": self.setup | self._load_setup(),
            "server": self.server,
            "remarks": [*self._remarks(), *remarks_on(rows)],
            "reference": reference_json(when, self._alone) if self._alone else None,
            "questions": questions_json(questions, references),
            "rows": rows,
        }

    def _load_setup(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "api": plan.api.value,
            "questions_from": self.asked.source,
            "num_requests": None if plan.duration_s is not None else plan.num_requests,
            "duration_s": plan.duration_s,
            "num_warmup": plan.num_warmup,
            "burstiness": plan.burstiness,
            "max_concurrency": plan.max_concurrency,
            "max_tokens": plan.max_tokens,
            "seed": plan.seed,
            "slos_ms": plan.slos_ms,
            "cancel_share": plan.cancel_share,
            "timeout_s": plan.timeout_s,
        }

    def _remarks(self) -> list[str]:
        found = [self.asked.remark] if self.asked.remark else []
        model, load = self.server["model"] or {}, self.server["load"] or {}
        if model.get("random_weights"):
            found.append("the model's weights are random: its answers mean nothing, its speed does")
        if load.get("num_requests_running") or load.get("num_requests_waiting"):
            found.append("the server had other requests at the start: nothing was alone")
        return found


@dataclass(slots=True)
class _Count:
    """Tells a progress bar how a load goes."""

    total: int
    report: Progress
    _outcomes: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        self._outcomes[record.exchange.outcome.value] += 1
        text = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self._outcomes.items()))
        self.report(self._outcomes.total(), self.total, text)
