"""What a run found: results.json for programs, table.md and a picture for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCHEMA = "wavllm.bench/1"
RESULTS, TABLE, PLOT = "results.json", "table.md", "latency.png"
LATENCIES = {"ttft_ms": "TTFT", "itl_ms": "ITL", "tpot_ms": "TPOT", "e2e_ms": "E2E"}
HEADERS = (
    "rate /s",
    "sent",
    "ok",
    "failed",
    "rejected",
    "cancelled",
    "req/s",
    "tok/s",
    "audio s/s",
    "goodput /s",
    *(f"{name} ms p50 / p95 / p99" for name in LATENCIES.values()),
    "equal alone",
    "lag p99 ms",
)

Json = dict[str, Any]


def prepare_directory(directory: Path) -> None:
    """Make it, and write to it once: what cannot be kept need not be measured. Raises OSError."""
    directory.mkdir(parents=True, exist_ok=True)
    probe = directory / f".{RESULTS}.new"
    probe.write_text("", encoding="utf-8")
    probe.unlink()


def write_results(results: Json, directory: Path) -> None:
    """results.json, whole or not at all."""
    text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
    directory.mkdir(parents=True, exist_ok=True)
    new = directory / f".{RESULTS}.new"
    new.write_text(text + "\n", encoding="utf-8")
    new.replace(directory / RESULTS)


def write_pages(results: Json, directory: Path) -> None:
    """table.md and latency.png."""
    from server.bench.plot import plot_latency  # loads matplotlib, which takes a second

    (directory / TABLE).write_text(markdown(results), encoding="utf-8")
    plot_latency(results["rows"], directory / PLOT)


def markdown(results: Json) -> str:
    """The table with what one has to know to read it."""
    setup, server = results["setup"], results["server"]
    model = (server["model"] or {}).get("id", "unknown model")
    lines = [
        "# Benchmark",
        "",
        f"- server: {server['url']} ({model}), {setup['api']} API",
        f"- {len(results['questions'])} questions from {setup['questions_from']}, "
        f"{setup['max_tokens']} tokens at most, seed {setup['seed']}, burstiness {setup['burstiness']:g}",
        f"- generator: {setup['processor']}, {setup['num_cores']} cores, commit {setup['commit']}",
        *(f"- {remark}" for remark in results["remarks"]),
        "",
        "| " + " | ".join(HEADERS) + " |",
        "|" + "---|" * len(HEADERS),
        *("| " + " | ".join(cells(row)) + " |" for row in results["rows"]),
        "",
    ]
    return "\n".join(lines)


def cells(row: Json) -> list[str]:
    """One row of the table, a text for each of `HEADERS`."""
    requests, done = row["requests"], row["throughput"]
    return [
        rate_text(row["request_rate"]),
        *(str(requests[name]) for name in ("sent", "ok", "failed")),
        rejected_text(row),
        str(requests["cancelled"]),
        *(number(done[name]) for name in ("requests_per_s", "output_tokens_per_s", "audio_seconds_per_s")),
        goodput_text(row["goodput"]),
        *(" / ".join(percentiles(row[name])) for name in LATENCIES),
        agreement_text(row["agreement"]),
        number(row["client"]["schedule_lag_ms"]["p99"]) + ("!" if row["client"]["is_saturated"] else ""),
    ]


def percentiles(stats: Json) -> list[str]:
    """p50, p95 and p99."""
    return [number(stats[name]) for name in ("p50", "p95", "p99")]


def rate_text(rate: float | str) -> str:
    """As on the command line."""
    return rate if isinstance(rate, str) else f"{rate:g}"


def rejected_text(row: Json) -> str:
    """How many, and with which statuses."""
    by_status = ", ".join(f"{found['count']}x{status}" for status, found in row["rejections"].items())
    return f"{row['requests']['rejected']}" + (f" ({by_status})" if by_status else "")


def goodput_text(goodput: Json | None) -> str:
    """Per second, and the share of requests."""
    if goodput is None or goodput["share"] is None:
        return "-"
    return f"{number(goodput['requests_per_s'])} ({goodput['share']:.0%})"


def agreement_text(agreement: Json | None) -> str:
    """How many of how many, and the share; never 100 % when one differs."""
    if agreement is None:
        return "-"
    percent = int(1000 * agreement["share"]) / 10
    return f"{agreement['equal']}/{agreement['compared']} ({percent:g}%)"


def number(value: float | None) -> str:
    """Three digits or all before the point."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def remarks_on(rows: Sequence[Json]) -> list[str]:
    """What a reader of the figures has to know."""
    found = []
    for row in rows:
        rate, client = rate_text(row["request_rate"]), row["client"]
        if client["is_saturated"]:
            worst = max(client[name]["p99"] or 0 for name in ("schedule_lag_ms", "loop_lag_ms"))
            found.append(
                f"rate {rate}: the generator was saturated: {number(worst)} ms late at p99, "
                f"{number(client['allowed_lag_ms'])} allowed; the latencies are partly its own"
            )
        if row["agreement"] is not None and row["agreement"]["differing"]:
            found.append(f"rate {rate}: {len(row['agreement']['differing'])} answers differ from those alone")
        for kind, failure in row["failures"].items():
            found.append(f"rate {rate}: {failure['count']} failed: {kind}: {failure['example']}")
    return found
