"""`wavllm bench`: read its options, run the plan, show the table."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from server.bench.report import (
    LATENCIES,
    PLOT,
    RESULTS,
    TABLE,
    agreement_text,
    goodput_text,
    number,
    percentiles,
    rate_text,
)
from server.bench.run import bench
from server.bench.types import BenchError, Plan, ReferenceTime
from server.cli_errors import CommandError, check_server
from server.cli_progress import progress_bar

INTERRUPTED = 130
"""The exit code that shells give a command ended by Ctrl-C."""
SLOS = {"ttft": "ttft", "tpot": "tpot", "e2e": "e2e", "e2el": "e2e"}
PIPED_WIDTH = 120
"""Columns where nobody's terminal says how many there are."""


def parse_rates(text: str) -> tuple[float, ...]:
    """ "1,2,inf" -> (1, 2, inf). Raises CommandError."""
    try:
        rates = tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise CommandError(f"--request-rate: {text} is not a list of numbers such as 1,2,inf", 2) from error
    if not all(rate > 0 for rate in rates):
        raise CommandError("--request-rate: every rate must be above 0", 2)
    return rates


def parse_slos(texts: Sequence[str]) -> dict[str, float]:
    """("ttft:600",) -> {"ttft": 600}. Raises CommandError."""
    slos = {}
    for text in texts:
        name, _, bound = text.partition(":")
        try:
            slos[SLOS[name]] = float(bound)
        except (KeyError, ValueError) as error:
            raise CommandError(f"--goodput: {text} is not NAME:MS with ttft, tpot or e2e", 2) from error
        if not 0 < slos[SLOS[name]] < math.inf:
            raise CommandError(f"--goodput: {text} is no bound; it must be a number of ms above 0", 2)
    return slos


def default_output() -> Path:
    """A directory of its own for every run."""
    return Path("bench-results") / datetime.now().astimezone().strftime("%Y%m%d-%H%M%S")


def run_plan(plan: Plan) -> None:
    """Run, print the table. Raises CommandError, also if a request failed."""
    check(plan)
    try:
        results = asyncio.run(bench(plan, progress_bar))
    except BenchError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"{error.filename or plan.output}: {error.strerror}") from error
    except KeyboardInterrupt as error:
        raise CommandError(_interrupted(plan.output / RESULTS), INTERRUPTED) from error
    _show(plan, results)


def _interrupted(results: Path) -> str:
    if results.exists():
        return f"interrupted; the rates that were finished are in {results}"
    return "interrupted before a rate was finished: there are no results"


def check(plan: Plan) -> None:
    """Raise CommandError for options that do not go together."""
    check_server(plan.server, plan.api_key)
    _check_finite(plan)
    if plan.manifest is not None and (plan.audio or plan.prompts):
        raise CommandError("--manifest: does not go with --audio or --prompt", 2)
    if plan.manifest is None and plan.audio_root is not None:
        raise CommandError("--audio-root: needs --manifest", 2)
    if plan.duration_s is not None and any(math.isinf(rate) for rate in plan.rates):
        raise CommandError("--duration: does not go with the rate inf; use --num-requests", 2)
    if plan.cancel_share and plan.reference is not ReferenceTime.BEFORE:
        raise CommandError("--cancel-share: needs --reference before, to know how long answers are", 2)


def _check_finite(plan: Plan) -> None:
    """Only a rate may be infinite: no schedule has an infinite duration, no number compares with nan."""
    values = {
        "--duration": plan.duration_s,
        "--burstiness": plan.burstiness,
        "--cancel-share": plan.cancel_share,
        "--timeout": plan.timeout_s,
    }
    for option, value in values.items():
        if value is not None and not math.isfinite(value):
            raise CommandError(f"{option}: {value} is not a finite number", 2)


def _show(plan: Plan, results: dict[str, Any]) -> None:
    for remark in results["remarks"]:
        typer.echo(f"wavllm: {remark}", err=True)
    console = Console()
    console = console if console.is_terminal else Console(width=PIPED_WIDTH)
    console.print(make_table(results["rows"]))
    typer.echo(f"{plan.output}: {RESULTS}, {TABLE}, {PLOT}")
    num_failed = sum(row["requests"]["failed"] for row in results["rows"])
    if num_failed:
        raise CommandError(f"{num_failed} requests failed (see {plan.output / RESULTS})")


def make_table(rows: Sequence[dict[str, Any]]) -> Table:
    """A row for each rate, its percentiles one under the other."""
    table = Table(title="Latencies in ms, from the scheduled send: p50, p95, p99", show_lines=True)
    headers = ("rate\nreq/s", "requests", "done per s", "goodput\nreq/s", *LATENCIES.values())
    for header in (*headers, "equal\nalone", "lag ms\np99"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: dict[str, Any]) -> list[str]:
    done, client = row["throughput"], row["client"]
    outcomes = ("ok", "failed", "rejected", "cancelled")
    counts = [f"{row['requests'][name]} {name}" for name in outcomes if name == "ok" or row["requests"][name]]
    per_second = {"req": "requests_per_s", "tok": "output_tokens_per_s", "audio s": "audio_seconds_per_s"}
    lag = number(client["schedule_lag_ms"]["p99"])
    return [
        rate_text(row["request_rate"]),
        "\n".join(counts),
        "\n".join(f"{number(done[name])} {unit}" for unit, name in per_second.items()),
        goodput_text(row["goodput"]).replace(" ", "\n"),
        *("\n".join(percentiles(row[name])) for name in LATENCIES),
        agreement_text(row["agreement"]).replace(" ", "\n"),
        f"{lag}\nsaturated" if client["is_saturated"] else lag,
    ]
