"""From the records of a load to its figures. Pure: docs/benchmarking.md defines each of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from server.bench.types import BenchError, Exchange, Load, Outcome, Question, Record, References

Records = Sequence[Record]
Json = dict[str, Any]

PERCENTILES = (50, 95, 99)
MAX_LAG_SHARE = 0.1
"""Of the median time to first token: more lateness of the generator's own, and it is what was measured."""
MIN_LAG_MS = 10.0
"""Lateness that any machine has."""


def row_figures(
    load: Load, questions: Sequence[Question], references: References, slos_ms: dict[str, float]
) -> Json:
    """One rate's row of results.json. Raises BenchError if a request was lost."""
    check_law(load)
    measured = [record for record in load.records if not record.arrival.is_warmup]
    answered = of(measured, Outcome.OK)
    span_s = duration_s(measured)
    return {
        "request_rate": "inf" if math.isinf(load.rate) else load.rate,
        "offered_rate": offered_rate(measured),
        "duration_s": rounded(span_s),
        "num_warmup": len(load.records) - len(measured),
        "requests": counts(measured),
        **latencies_ms(answered),
        "from_send": from_send_ms(answered),
        "hold_ms": stats_ms(record.hold_s for record in measured),
        "throughput": throughput(answered, questions, span_s),
        "goodput": goodput(measured, slos_ms, span_s),
        "agreement": agreement(answered, questions, references),
        "rejections": rejections(measured),
        "failures": failures(measured),
        "cancellations": cancellations(measured),
        "client": client_state(load, measured),
        "records": [record_json(record, questions) for record in sorted(measured, key=_index)],
    }


# Accounting


def check_law(load: Load) -> None:
    """Raise BenchError unless every request that was sent has exactly one outcome."""
    indices = {record.arrival.index for record in load.records}
    ended = sum(Counter(record.exchange.outcome for record in load.records).values())
    if not load.num_sent == ended == len(indices):
        raise BenchError(f"the accounts do not balance: sent {load.num_sent}, ended {ended}")


def counts(records: Records) -> Json:
    """Requests by what became of them."""
    found = Counter(record.exchange.outcome for record in records)
    return {"sent": len(records)} | {outcome.value: found[outcome] for outcome in Outcome}


def of(records: Records, outcome: Outcome) -> list[Record]:
    """Those that ended so."""
    return [record for record in records if record.exchange.outcome is outcome]


# Time


def stats_ms(seconds: Iterable[float | None]) -> Json:
    """Count, mean, percentiles (linear interpolation) and maximum; None is left out."""
    values = np.array([value for value in seconds if value is not None]) * 1e3
    if not values.size:
        return {"count": 0, "mean": None, **{f"p{q}": None for q in PERCENTILES}, "max": None}
    percentiles = np.percentile(values, PERCENTILES)
    named = {f"p{q}": rounded(value) for q, value in zip(PERCENTILES, percentiles, strict=True)}
    return {"count": values.size, "mean": rounded(values.mean()), **named, "max": rounded(values.max())}


def latencies_ms(answered: Records) -> Json:
    """Of requests that were answered, from the scheduled send."""
    return {
        "ttft_ms": stats_ms(record.ttft_s for record in answered),
        "itl_ms": stats_ms(gap for record in answered for gap in token_gaps_s(record.exchange)),
        "tpot_ms": stats_ms(tpot_s(record) for record in answered),
        "e2e_ms": stats_ms(record.e2e_s for record in answered),
    }


def from_send_ms(answered: Records) -> Json:
    """The same from the actual send, as closed-loop tools count."""

    def shifted(seconds: float | None, record: Record) -> float | None:
        return None if seconds is None else seconds - record.lag_s - record.hold_s

    return {
        "ttft_ms": stats_ms(shifted(record.ttft_s, record) for record in answered),
        "e2e_ms": stats_ms(shifted(record.e2e_s, record) for record in answered),
    }


def tpot_s(record: Record) -> float | None:
    """Time per token after the first text; None for answers of fewer than two tokens."""
    num_tokens = record.exchange.num_tokens or 0
    if record.ttft_s is None or num_tokens < 2:
        return None
    return (record.e2e_s - record.ttft_s) / (num_tokens - 1)


def token_gaps_s(exchange: Exchange) -> list[float]:
    """Between one token and the next.

    Tokens that come in one delta share the time since the delta before. Where the stream tells no ids, every
    delta is taken to hold as many tokens as any other, by the server's count.
    """
    if exchange.token_ids:
        pieces = [piece for piece in exchange.pieces if piece.token_ids]
        gaps = pairwise(pieces)
        return [
            (later.at - before.at) / len(later.token_ids) for before, later in gaps for _ in later.token_ids
        ]
    times = [piece.at for piece in exchange.pieces]
    num_gaps = max(len(times) - 1, 1)
    tokens_per_gap = max(((exchange.usage_tokens or len(times)) - 1) / num_gaps, 1.0)
    return [float(gap) / tokens_per_gap for gap in np.diff(times)]


def duration_s(records: Records) -> float:
    """From the first scheduled send to the last end."""
    if not records:
        return 0.0
    return max(record.exchange.ended for record in records) - min(record.due for record in records)


def offered_rate(records: Records) -> float | str | None:
    """Requests per second as they were drawn: gaps over the time between the first and the last."""
    if len(records) < 2:
        return None
    dues = [record.due for record in records]
    span = max(dues) - min(dues)
    return rounded((len(dues) - 1) / span) if span > 0 else "inf"


# Work done


def throughput(answered: Records, questions: Sequence[Question], span_s: float) -> Json:
    """What was answered, per second. Tokens are null if the server never counted them."""
    tokens = [record.exchange.num_tokens for record in answered]
    total = None if None in tokens else sum(count for count in tokens if count is not None)
    audio_s = sum(questions[record.arrival.question].clip.seconds for record in answered)
    return {
        "requests_per_s": per_second(len(answered), span_s),
        "output_tokens_per_s": None if total is None else per_second(total, span_s),
        "audio_seconds_per_s": per_second(audio_s, span_s),
        "output_tokens": total,
        "audio_seconds": rounded(audio_s),
    }


def goodput(records: Records, slos_ms: dict[str, float], span_s: float) -> Json | None:
    """Answers within every bound; share: of the requests whose clients stayed."""
    if not slos_ms:
        return None
    stayed = [record for record in records if record.exchange.outcome is not Outcome.CANCELLED]
    good = sum(is_good(record, slos_ms) for record in stayed)
    return {
        "slos_ms": dict(slos_ms),
        "requests": good,
        "requests_per_s": per_second(good, span_s),
        "share": share(good, len(stayed)),
    }


def is_good(record: Record, slos_ms: dict[str, float]) -> bool:
    """Answered within every bound. Without any text the end stands for it; one token is in time."""
    if record.exchange.outcome is not Outcome.OK:
        return False
    ttft_s = record.e2e_s if record.ttft_s is None else record.ttft_s
    values = {"ttft": ttft_s, "tpot": tpot_s(record) or 0.0, "e2e": record.e2e_s}
    return all(values[name] * 1e3 <= bound for name, bound in slos_ms.items())


def agreement(answered: Records, questions: Sequence[Question], references: References) -> Json | None:
    """Answers equal to those of the same question asked alone; None if nothing was asked alone."""
    compared = [(record, references[record.arrival.question]) for record in answered]
    pairs = [(record, reference) for record, reference in compared if reference is not None]
    if not pairs:
        return None
    differing = [
        (record, reference) for record, reference in pairs if not is_same(record.exchange, reference)
    ]
    return {
        "by": "token_ids"
        if all(has_ids(record.exchange, reference) for record, reference in pairs)
        else "text",
        "compared": len(pairs),
        "equal": len(pairs) - len(differing),
        "share": share(len(pairs) - len(differing), len(pairs)),
        "differing": [difference(record, reference, questions) for record, reference in differing],
    }


def has_ids(one: Exchange, other: Exchange) -> bool:
    """Whether both told their token ids; an empty answer has none to tell."""
    return all(exchange.token_ids or not exchange.pieces for exchange in (one, other))


def is_same(one: Exchange, other: Exchange) -> bool:
    """The same answer: by ids where both have them, else by text; cut or not, too."""
    by_ids = one.token_ids == other.token_ids if has_ids(one, other) else one.text == other.text
    return by_ids and one.finish_reason == other.finish_reason


def difference(record: Record, reference: Exchange, questions: Sequence[Question]) -> Json:
    """Both answers, and how many tokens (characters, without ids) they begin with in common."""
    got = record.exchange
    pair: tuple[Sequence[Hashable], Sequence[Hashable]] = (
        (got.token_ids, reference.token_ids) if has_ids(got, reference) else (got.text, reference.text)
    )
    equal = [one == other for one, other in zip(*pair, strict=False)]
    return {
        "index": record.arrival.index,
        "question": questions[record.arrival.question].id,
        "common": [*equal, False].index(False),
        "answer": got.text,
        "answer_token_ids": list(got.token_ids),
        "alone": reference.text,
        "alone_token_ids": list(reference.token_ids),
    }


# What was not answered


def rejections(records: Records) -> Json:
    """Refusals by status, each with its codes and its latency from the actual send."""
    return _grouped(
        of(records, Outcome.REJECTED),
        lambda record: str(record.exchange.status),
        lambda group: {"codes": dict(Counter(str(record.exchange.error) for record in group))},
    )


def failures(records: Records) -> Json:
    """Failures by kind, each with the first one's details."""
    return _grouped(
        of(records, Outcome.FAILED),
        lambda record: str(record.exchange.error),
        lambda group: {"status": group[0].exchange.status, "example": group[0].exchange.detail},
    )


def cancellations(records: Records) -> Json:
    """Requests whose client left: when, and after how many characters in all."""
    left = of(records, Outcome.CANCELLED)
    return {
        "count": len(left),
        "latency_ms": stats_ms(record.exchange.ended - record.sent for record in left),
        "characters": sum(len(record.exchange.text) for record in left),
    }


def _grouped(
    records: Records, key: Callable[[Record], str], more: Callable[[list[Record]], Json]
) -> dict[str, Json]:
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return {
        name: {
            "count": len(group),
            **more(group),
            "latency_ms": stats_ms(record.exchange.ended - record.sent for record in group),
        }
        for name, group in sorted(groups.items())
    }


# The generator


def client_state(load: Load, measured: Records) -> Json:
    """How late the generator was. Saturated: so late that the figures are about it, too."""
    schedule, loop = stats_ms(record.lag_s for record in measured), stats_ms(load.loop_lags_s)
    ttft = stats_ms(record.ttft_s for record in of(measured, Outcome.OK))["p50"]
    allowed = max(MIN_LAG_MS, MAX_LAG_SHARE * (ttft or 0.0))
    worst = max(schedule["p99"] or 0.0, loop["p99"] or 0.0)
    return {
        "schedule_lag_ms": schedule,
        "loop_lag_ms": loop,
        "allowed_lag_ms": rounded(allowed),
        "is_saturated": worst > allowed,
    }


def record_json(record: Record, questions: Sequence[Question]) -> Json:
    """One request, for whoever wants other figures."""
    exchange = record.exchange
    return {
        "index": record.arrival.index,
        "question": questions[record.arrival.question].id,
        "at_s": rounded(record.arrival.at_s),
        "outcome": exchange.outcome.value,
        "status": exchange.status,
        "error": exchange.error,
        "finish_reason": exchange.finish_reason,
        "tokens": exchange.num_tokens,
        "lag_ms": _ms(record.lag_s),
        "hold_ms": _ms(record.hold_s),
        "ttft_ms": _ms(record.ttft_s),
        "e2e_ms": _ms(record.e2e_s),
    }


def _index(record: Record) -> int:
    return record.arrival.index


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else rounded(seconds * 1e3)


def per_second(amount: float, span_s: float) -> float | None:
    """None over no time."""
    return rounded(amount / span_s) if span_s > 0 else None


def share(part: int, whole: int) -> float | None:
    """None of nothing."""
    return round(part / whole, 6) if whole else None


def rounded(value: float) -> float:
    """To the microsecond where it is milliseconds."""
    return round(float(value), 3)
