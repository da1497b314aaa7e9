"""Every figure by hand, from records whose times are known."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from bench_harness import plan_of, questions_of

from server import cli_bench
from server.bench import figures
from server.bench.plot import plot_latency
from server.bench.report import HEADERS, agreement_text, cells, markdown, number, remarks_on
from server.bench.setup import commit, processor, without_secrets
from server.bench.types import Arrival, BenchError, Exchange, Load, Outcome, Piece, Record, ReferenceTime
from server.cli_bench import check, make_table, parse_rates, parse_slos, run_plan
from server.cli_errors import CommandError

QUESTIONS = questions_of(2)
ROOT = Path(__file__).resolve().parents[2]
DUE = 100.0


def answer(*pieces: Piece, ended: float, **more) -> Exchange:
    return Exchange(Outcome.OK, ended, pieces, finish_reason="stop", **more)


def record(
    index: int, exchange: Exchange, due: float = DUE, ready: float = 0, sent: float = 0, **arrival
) -> Record:
    """due, ready, sent: instants; those left out are equal to due."""
    return Record(
        Arrival(index, due, index % 2, **arrival), due, ready or due, sent or ready or due, exchange
    )


def load_of(*records: Record, lags: tuple[float, ...] = ()) -> Load:
    return Load(2.0, len(records), records, lags)


def row_of(*records: Record, references=(None, None), slos=None, **more) -> dict:
    return figures.row_figures(load_of(*records, **more), QUESTIONS, references, slos or {})


HELLO = answer(Piece(100.2, "He", (1,)), Piece(100.3, "llo", (2, 3)), Piece(100.5, "", (4,)), ended=100.6)


def test_percentiles_are_interpolated():
    stats = figures.stats_ms(n / 1000 for n in range(1, 101))
    assert stats == {"count": 100, "mean": 50.5, "p50": 50.5, "p95": 95.05, "p99": 99.01, "max": 100.0}
    assert figures.stats_ms([None]) == {
        "count": 0,
        "mean": None,
        "p50": None,
        "p95": None,
        "p99": None,
        "max": None,
    }


def test_latencies_count_from_the_scheduled_send():
    row = row_of(record(0, HELLO, ready=100.02, sent=100.1))
    assert row["ttft_ms"]["p50"] == 200
    assert row["e2e_ms"]["p50"] == 600
    assert row["tpot_ms"]["p50"] == pytest.approx(400 / 3, abs=0.001)
    assert row["from_send"]["ttft_ms"]["p50"] == 100
    assert row["from_send"]["e2e_ms"]["p50"] == 500
    assert row["hold_ms"]["max"] == 80
    assert row["client"]["schedule_lag_ms"]["max"] == 20


def test_tokens_of_one_delta_share_its_time():
    assert figures.token_gaps_s(HELLO) == pytest.approx([0.05, 0.05, 0.2])


def test_without_ids_the_servers_count_is_spread_over_the_deltas():
    pieces = (Piece(1.0, "a"), Piece(1.3, "b"), Piece(1.4, "c"))
    assert figures.token_gaps_s(answer(*pieces, ended=2, usage_tokens=5)) == pytest.approx([0.15, 0.05])
    assert figures.token_gaps_s(answer(*pieces, ended=2)) == pytest.approx([0.3, 0.1])
    assert figures.token_gaps_s(answer(pieces[0], ended=2, usage_tokens=9)) == []
    assert figures.token_gaps_s(answer(ended=2)) == []


def test_tokens_are_counted_by_ids_then_by_usage():
    assert answer(Piece(1, "a", (1, 2)), ended=2, usage_tokens=9).num_tokens == 2
    assert answer(Piece(1, "a"), ended=2, usage_tokens=9).num_tokens == 9
    assert answer(Piece(1, "a"), ended=2).num_tokens is None
    assert answer(ended=2).num_tokens == 0


def test_the_first_text_and_not_the_first_id_is_the_first_token():
    late = answer(Piece(100.1, "", (1,)), Piece(100.4, "x", (2,)), ended=100.5)
    assert record(0, late).ttft_s == pytest.approx(0.4)
    silent = answer(ended=100.5)
    row = row_of(record(0, silent), slos={"ttft": 400})
    assert row["ttft_ms"]["count"] == 0
    assert row["goodput"]["requests"] == 0


REFUSED = Exchange(Outcome.REJECTED, 100.01, status=503, error="overloaded")
BROKEN = Exchange(Outcome.FAILED, 100.3, error="cut", detail="too short")
LEFT = Exchange(Outcome.CANCELLED, 100.4, (Piece(100.2, "He", (1,)),))


def mixed() -> list[Record]:
    too_big = Exchange(Outcome.REJECTED, 100.03, status=413, error="payload_too_large")
    ends = (HELLO, HELLO, REFUSED, REFUSED, too_big, BROKEN, LEFT)
    return [record(index, exchange) for index, exchange in enumerate(ends)]


def test_only_answers_make_latencies_and_throughput():
    row = row_of(*mixed())
    assert row["requests"] == {"sent": 7, "ok": 2, "failed": 1, "rejected": 3, "cancelled": 1}
    assert row["e2e_ms"]["count"] == row["ttft_ms"]["count"] == 2
    assert row["duration_s"] == 0.6
    assert row["throughput"] == {
        "requests_per_s": 3.333,
        "output_tokens_per_s": 13.333,
        "audio_seconds_per_s": 6.667,
        "output_tokens": 8,
        "audio_seconds": 4.0,
    }
    uncounted = answer(Piece(100.2, "a"), ended=100.6)
    assert row_of(record(0, HELLO), record(1, uncounted))["throughput"]["output_tokens"] is None


def test_what_was_not_answered_is_told_by_kind():
    row = row_of(*mixed())
    assert list(row["rejections"]) == ["413", "503"]
    assert row["rejections"]["503"]["count"] == 2
    assert row["rejections"]["503"]["codes"] == {"overloaded": 2}
    assert row["rejections"]["413"]["latency_ms"]["p50"] == 30
    assert row["failures"]["cut"]["count"] == 1
    assert row["failures"]["cut"]["example"] == "too short"
    assert row["cancellations"]["count"] == 1
    assert row["cancellations"]["characters"] == 2
    assert row["cancellations"]["latency_ms"]["p50"] == 400


@pytest.mark.parametrize(
    ("slos", "good"),
    [
        ({"ttft": 201}, 2),
        ({"ttft": 199}, 0),
        ({"ttft": 201, "e2e": 599}, 0),
        ({"e2e": 601, "tpot": 134}, 2),
        ({"tpot": 133}, 0),
    ],
)
def test_goodput_wants_every_bound_and_counts_the_refused(slos: dict, good: int):
    found = row_of(*mixed(), slos=slos)["goodput"]
    assert found["requests"] == good
    assert found["requests_per_s"] == pytest.approx(good / 0.6, abs=0.001)
    assert found["share"] == pytest.approx(good / 6, abs=1e-6)  # the client that left is no miss


def test_no_bounds_no_goodput():
    assert row_of(*mixed())["goodput"] is None


def test_agreement_by_ids_lists_what_differs():
    other = answer(Piece(100.2, "He", (1,)), Piece(100.3, "llo", (2, 9)), ended=101)
    references = (HELLO, HELLO)
    row = row_of(record(0, HELLO), record(1, other), record(2, REFUSED), references=references)
    found = row["agreement"]
    assert (found["by"], found["compared"], found["equal"], found["share"]) == ("token_ids", 2, 1, 0.5)
    (difference,) = found["differing"]
    assert (difference["index"], difference["question"], difference["common"]) == (1, "q1", 2)
    assert difference["answer_token_ids"] == [1, 2, 9]
    assert difference["alone_token_ids"] == [1, 2, 3, 4]
    assert any("1 answers differ" in remark for remark in remarks_on([row]))


def test_agreement_by_text_where_there_are_no_ids():
    plain = answer(Piece(100.2, "Hello"), ended=101)
    assert figures.is_same(plain, HELLO)
    assert not figures.is_same(answer(Piece(100.2, "Hullo"), ended=101), HELLO)
    found = row_of(record(0, plain), references=(HELLO, None))["agreement"]
    assert (found["by"], found["equal"]) == ("text", 1)
    assert row_of(record(0, plain))["agreement"] is None
    assert row_of(record(0, REFUSED), references=(HELLO, HELLO))["agreement"] is None


def test_a_cut_answer_differs_from_a_whole_one():
    cut = Exchange(Outcome.OK, 101, HELLO.pieces, finish_reason="length")
    assert not figures.is_same(cut, HELLO)


def test_warm_up_is_in_no_figure():
    slow = answer(Piece(109.0, "x", (1,)), ended=110)
    early = record(0, slow, due=99.0, is_warmup=True)
    row = row_of(early, record(1, HELLO), record(2, HELLO))
    assert (row["num_warmup"], row["requests"]["sent"], row["e2e_ms"]["max"]) == (1, 2, 600)
    assert row["duration_s"] == 0.6
    assert [one["index"] for one in row["records"]] == [1, 2]


def test_accounts_that_do_not_balance_are_an_error():
    first, second = record(0, HELLO), record(1, REFUSED)
    figures.check_law(load_of(first, second))
    for num_sent, records in ((3, (first, second)), (1, (first, second)), (2, (first, first))):
        with pytest.raises(BenchError, match="balance"):
            figures.check_law(Load(1.0, num_sent, records, ()))


def test_the_offered_rate_is_what_was_drawn():
    dues = (100.0, 100.5, 101.0, 102.0)
    records = [record(n, REFUSED, due=due) for n, due in enumerate(dues)]
    assert figures.offered_rate(records) == 1.5
    assert figures.offered_rate(records[:1]) is None
    assert figures.offered_rate([records[0], records[0]]) == "inf"


def test_a_late_generator_is_told():
    late = [record(n, HELLO, ready=100.05) for n in range(3)]
    assert row_of(*late)["client"]["is_saturated"]
    assert row_of(*late)["client"]["allowed_lag_ms"] == 20
    on_time = [record(n, HELLO, ready=100.015) for n in range(3)]
    assert not row_of(*on_time)["client"]["is_saturated"]
    busy = row_of(*on_time, lags=(0.0, 0.0, 0.1))
    assert busy["client"]["is_saturated"]
    assert any("saturated" in remark for remark in remarks_on([busy]))
    held_back = [record(n, HELLO, ready=100.001, sent=100.15) for n in range(3)]
    assert not row_of(*held_back)["client"]["is_saturated"]


def results_of(*rows: dict) -> dict:
    setup = {"api": "speech", "questions_from": "files", "max_tokens": 8, "seed": 0, "burstiness": 1.0}
    setup |= {"processor": "p", "num_cores": 2, "commit": None}
    server = {"url": "http://x", "model": None, "load": None}
    return {"setup": setup, "server": server, "remarks": ["mind"], "questions": [1], "rows": list(rows)}


def test_tables_and_pictures_of_any_row(tmp_path: Path):
    full = row_of(*mixed(), references=(HELLO, HELLO), slos={"ttft": 200})
    full["request_rate"] = "inf"
    empty = row_of(record(0, REFUSED))
    lines = markdown(results_of(full, empty)).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 4
    assert {line.count(" | ") for line in (table[0], *table[2:])} == {len(HEADERS) - 1}
    assert "- mind" in lines
    assert cells(full)[0] == "inf"
    assert cells(full)[4] == "3 (1x413, 2x503)"
    assert "200 / 200 / 200" in table[2]
    assert "2/2 (100%)" in table[2]
    assert make_table([full, empty]).row_count == 2
    plot_latency([full, empty], tmp_path / "latency.png")
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
    json.dumps([full, empty], allow_nan=False)


def test_numbers_are_short_and_a_share_never_flatters():
    assert [number(value) for value in (None, 0.1234, 12.34, 1234.4)] == ["-", "0.12", "12.3", "1234"]
    assert agreement_text({"equal": 1999, "compared": 2000, "share": 0.9995}) == "1999/2000 (99.9%)"


def paths_of(value: object, prefix: str = "") -> set[str]:
    """Names of all fields, as far as they are fixed; those under a status or a kind stand under `*`."""
    if isinstance(value, list):
        return set().union(*(paths_of(one, prefix) for one in value))
    if not isinstance(value, dict):
        return set()
    found = set()
    for name, inner in value.items():
        found |= {name} | paths_of(inner)
    return found


def test_every_field_of_a_row_is_documented():
    text = (ROOT / "docs" / "benchmarking.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))
    other = answer(Piece(100.2, "x", (8,)), ended=101)
    row = row_of(*mixed()[:6], record(6, other), references=(HELLO, HELLO), slos={"ttft": 200})
    row["rejections"] = list(row["rejections"].values())
    row["failures"] = list(row["failures"].values())
    for group in row["rejections"]:
        group["codes"] = {}
    assert paths_of(row) - documented == set()


def test_keys_are_not_written_down():
    words = ["wavllm", "bench", "--api-key", "sesame", "--seed", "1", "--api-key=sesame"]
    shown = without_secrets(words)
    assert shown == ["wavllm", "bench", "--api-key", "***", "--seed", "1", "--api-key=***"]


def test_what_it_ran_on(tmp_path: Path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Fast One\n")
    assert processor(cpuinfo) == "Fast One"
    assert processor(tmp_path / "none")
    assert commit(tmp_path) is None


def test_options_that_are_lists():
    assert parse_rates("1,2.5,inf") == (1.0, 2.5, math.inf)
    assert parse_slos(("ttft:600", "e2el:3000")) == {"ttft": 600.0, "e2e": 3000.0}
    for wrong in ("", "1,x", "0", "-1", "nan"):
        with pytest.raises(CommandError, match="--request-rate"):
            parse_rates(wrong)
    for wrong in ("ttft", "itl:5", "ttft:soon", "ttft:inf", "e2e:nan", "tpot:0"):
        with pytest.raises(CommandError, match="--goodput"):
            parse_slos((wrong,))


def test_an_interruption_names_results_only_where_there_are_some(tmp_path: Path, monkeypatch):
    async def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_bench, "bench", interrupted)
    plan = plan_of("http://x", tmp_path)
    with pytest.raises(CommandError, match="no results") as caught:
        run_plan(plan)
    assert caught.value.exit_code == 130
    plan.output.mkdir()
    (plan.output / "results.json").write_text("{}")
    with pytest.raises(CommandError, match=r"results\.json"):
        run_plan(plan)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"server": "x.org"}, ("--server", "http://")),
        ({"manifest": Path("a.tsv")}, ("--manifest", "--prompt")),
        ({"audio_root": Path("x")}, ("--audio-root", "--manifest")),
        ({"duration_s": math.inf, "rates": (1.0,)}, ("--duration", "inf")),
        ({"burstiness": math.inf}, ("--burstiness", "inf")),
        ({"timeout_s": math.nan}, ("--timeout", "nan")),
        ({"cancel_share": math.nan}, ("--cancel-share", "nan")),
        ({"duration_s": 5.0}, ("--duration", "--num-requests")),
        ({"cancel_share": 0.1, "reference": ReferenceTime.NONE}, ("--cancel-share", "--reference")),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, changes: dict, words: tuple):
    check(plan_of("http://x", tmp_path))
    with pytest.raises(CommandError) as caught:
        check(plan_of("http://x", tmp_path, **changes))
    assert caught.value.exit_code == 2
    assert all(word in str(caught.value) for word in words)
