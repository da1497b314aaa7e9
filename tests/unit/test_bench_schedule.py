"""Arrivals: their statistics, and what a seed fixes."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from server.bench.schedule import Arrivals, only_asked

MANY = Arrivals(num_requests=20_000, num_questions=3, seed=7)


def gaps_of(arrivals: list) -> np.ndarray:
    return np.diff([0.0, *(arrival.at_s for arrival in arrivals)])


@pytest.mark.parametrize("burstiness", [0.25, 1.0, 4.0])
@pytest.mark.parametrize("rate", [0.5, 20.0])
def test_gaps_have_the_rates_mean_and_the_burstiness_spread(rate: float, burstiness: float):
    arrivals = Arrivals(20_000, 3, 7, burstiness=burstiness).at_rate(rate)
    gaps = gaps_of(arrivals)
    assert len(gaps) == 20_000
    assert gaps.min() >= 0
    # Of 20,000 draws the mean is known to some 2 % at this spread, the variation a little less well.
    assert gaps.mean() * rate == pytest.approx(1, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(1 / math.sqrt(burstiness), rel=0.06)


def test_poisson_counts_vary_as_much_as_their_mean():
    times = np.array([arrival.at_s for arrival in MANY.at_rate(10.0)])
    per_second = np.bincount(times.astype(int))[:-1]
    assert per_second.mean() == pytest.approx(10, rel=0.05)
    assert per_second.var() == pytest.approx(10, rel=0.1)


def test_a_seed_fixes_everything_and_another_changes_it():
    process = Arrivals(50, 4, 1, cancel_share=0.5)
    assert process.at_rate(2.0) == process.at_rate(2.0)
    assert process.at_rate(2.0) != Arrivals(50, 4, 2, cancel_share=0.5).at_rate(2.0)


def test_rates_differ_in_time_alone():
    slow, fast = MANY.at_rate(1.0), MANY.at_rate(8.0)
    assert gaps_of(fast) * 8 == pytest.approx(gaps_of(slow))
    assert [arrival.question for arrival in fast] == [arrival.question for arrival in slow]


def test_who_leaves_moves_nothing_else():
    stay, leave = Arrivals(400, 5, 3).at_rate(1.0), Arrivals(400, 5, 3, cancel_share=0.25).at_rate(1.0)
    assert [(a.at_s, a.question) for a in stay] == [(a.at_s, a.question) for a in leave]
    assert {a.leave_share for a in stay} == {None}
    shares = [a.leave_share for a in leave if a.leave_share is not None]
    assert len(shares) / 400 == pytest.approx(0.25, abs=0.07)
    assert all(0 <= share < 1 for share in shares)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.12)
    more = Arrivals(400, 5, 3, cancel_share=0.5).at_rate(1.0)
    assert all(b.leave_share == a.leave_share for a, b in zip(leave, more, strict=True) if a.leave_share)


def test_every_question_is_asked_as_often():
    asked = [arrival.question for arrival in Arrivals(30, 10, 0).at_rate(1.0)]
    assert set(Counter(asked).values()) == {3}
    rounds = [asked[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(one) == list(range(10)) for one in rounds)
    assert rounds[0] != rounds[1]


def test_what_is_asked_at_no_rate_is_left_out():
    process = Arrivals(6, 1000, 7)
    loads = [process.at_rate(rate) for rate in (1.0, math.inf)]
    asked, fewer = only_asked(loads)
    assert len(asked) == 6
    assert asked == sorted(asked)
    assert [[asked[arrival.question] for arrival in load] for load in fewer] == [
        [arrival.question for arrival in load] for load in loads
    ]
    assert [arrival.at_s for arrival in fewer[0]] == [arrival.at_s for arrival in loads[0]]
    assert only_asked([MANY.at_rate(1.0)]) == ([0, 1, 2], [MANY.at_rate(1.0)])


def test_a_duration_takes_what_arrives_in_it():
    timed = Arrivals(5, 3, 7, duration_s=100.0).at_rate(10.0)
    assert len(timed) == pytest.approx(1000, rel=0.1)
    assert timed[-1].at_s < 100
    assert timed == MANY.at_rate(10.0)[: len(timed)]


def test_warm_up_comes_first_and_in_addition():
    arrivals = Arrivals(6, 2, 0, num_warmup=4).at_rate(1.0)
    assert [arrival.is_warmup for arrival in arrivals] == [True] * 4 + [False] * 6
    assert [arrival.index for arrival in arrivals] == list(range(10))


def test_at_infinity_all_come_at_once_and_none_is_warm_up():
    arrivals = Arrivals(6, 2, 0, num_warmup=4).at_rate(math.inf)
    assert [(arrival.at_s, arrival.is_warmup) for arrival in arrivals] == [(0.0, False)] * 6
