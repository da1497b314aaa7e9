"""The ledger: bounds, exactness under any order of calls, drain rate; keys and rates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.admission import KeyRing, Ledger, LedgerLimits, RateLimiter
from server.errors import AuthenticationError, Overloaded, RateLimited


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def make_ledger(requests=3, audio_s=10.0, num_bytes=100, clock=None):
    return Ledger(LedgerLimits(requests, audio_s, num_bytes), clock or Clock())


def test_a_full_queue_refuses_and_a_started_request_makes_room():
    ledger = make_ledger(requests=2)
    first = ledger.take(1)
    ledger.take(1)
    with pytest.raises(Overloaded):
        ledger.take(1)
    ledger.leave_queue(first)
    ledger.take(1)
    assert (ledger.num_waiting, ledger.num_open) == (2, 3)
    ledger.check_integrity()


def test_bytes_are_bounded_and_follow_resizing():
    ledger = make_ledger(num_bytes=100)
    slot = ledger.take(90)
    with pytest.raises(Overloaded):
        ledger.take(11)
    ledger.resize_bytes(slot, 50)
    other = ledger.take(50)
    with pytest.raises(Overloaded):
        ledger.resize_bytes(other, 51)
    assert ledger.num_bytes == 100
    ledger.release(slot, completed=False)
    ledger.resize_bytes(other, 51)
    ledger.check_integrity()


def test_audio_seconds_are_bounded_but_a_lone_clip_fits():
    ledger = make_ledger(audio_s=10.0)
    first, second = ledger.take(1), ledger.take(1)
    ledger.reserve_audio(first, 25.0)
    with pytest.raises(Overloaded):
        ledger.reserve_audio(second, 1.0)
    ledger.leave_queue(first)
    ledger.reserve_audio(second, 1.0)
    assert ledger.waiting_audio_s == 1.0
    ledger.check_integrity()


def queued(ledger, count=1):
    """Slots of requests that the engine was given."""
    slots = [ledger.take(1) for _ in range(count)]
    for slot in slots:
        ledger.enter_queue(slot)
    return slots


def test_release_is_idempotent():
    ledger = make_ledger()
    slot = ledger.take(10)
    for _ in range(3):
        ledger.release(slot, completed=True)
        ledger.enter_queue(slot)
        ledger.leave_queue(slot)
        ledger.resize_bytes(slot, 50)
        ledger.reserve_audio(slot, 5.0)
    assert (ledger.num_open, ledger.num_waiting, ledger.num_bytes, ledger.waiting_audio_s) == (0, 0, 0, 0)
    ledger.check_integrity()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 7), st.integers(0, 60)), max_size=80))
def test_the_totals_are_exact_after_any_calls(steps):
    ledger = make_ledger(requests=5, audio_s=40.0, num_bytes=150)
    slots = []
    for action, which, amount in steps:
        try:
            if action == 0 or not slots:
                slots.append(ledger.take(amount))
                continue
            slot = slots[which % len(slots)]
            if action == 1:
                ledger.resize_bytes(slot, amount)
            elif action == 2:
                ledger.reserve_audio(slot, amount / 7)
            elif action == 3:
                ledger.leave_queue(slot)
            elif action == 4:
                ledger.enter_queue(slot)
            else:
                ledger.release(slot, completed=amount % 2 == 0)
        except Overloaded:
            pass
        ledger.check_integrity()
        assert ledger.num_waiting <= 5
        assert ledger.num_bytes <= 150
    for slot in slots:
        ledger.release(slot, completed=False)
    assert (ledger.num_open, ledger.num_waiting, ledger.num_bytes, ledger.waiting_audio_s) == (0, 0, 0, 0)


def test_integrity_check_sees_a_wrong_total():
    ledger = make_ledger()
    ledger.take(5)
    ledger.num_bytes += 1
    with pytest.raises(AssertionError):
        ledger.check_integrity()


def test_retry_after_follows_the_measured_rate():
    clock = Clock()
    ledger = make_ledger(requests=50, num_bytes=1000, clock=clock)
    assert ledger.retry_after_s == 1.0
    slots = queued(ledger, 30)
    for slot in slots[:10]:
        clock.now += 2.0
        ledger.release(slot, completed=True)
    assert ledger.expected_wait_s == pytest.approx(40.0)
    assert ledger.retry_after_s == pytest.approx(40.0)


def measure(ledger, clock, seconds):
    """Two requests in the queue, of which the first completes after so long."""
    slots = queued(ledger, 2)
    clock.now += seconds
    ledger.release(slots[0], completed=True)
    ledger.release(slots[1], completed=False)


def test_idle_time_is_not_slowness():
    clock = Clock()
    ledger = make_ledger(clock=clock)
    for _ in range(5):
        clock.now += 30.0
        measure(ledger, clock, 0.5)
    assert ledger.expected_wait_s == 0.0
    queued(ledger)
    assert ledger.expected_wait_s == pytest.approx(0.5)


def test_the_pace_of_long_ago_is_no_measure():
    clock = Clock()
    ledger = make_ledger(clock=clock)
    measure(ledger, clock, 5.0)
    clock.now += 61.0
    queued(ledger)
    assert ledger.expected_wait_s == 0.0


def test_who_waits_for_a_client_is_no_queue():
    """One uploads for a minute. Beside it answers come, 20 s apart: nobody waited for one of them."""
    clock = Clock()
    ledger = make_ledger(clock=clock)
    ledger.take(1)
    for _ in range(3):
        clock.now += 20.0
        (slot,) = queued(ledger)
        ledger.leave_queue(slot)
        ledger.release(slot, completed=True)
    assert (ledger.num_waiting, ledger.num_queued) == (1, 0)
    assert ledger.retry_after_s == 1.0
    queued(ledger, 2)
    assert ledger.expected_wait_s == 0.0
    ledger.check_integrity()


def test_what_nobody_waits_for_is_no_measure_of_a_queue():
    """Ten answers of 2 s, one after another: a burst of 20 may well be answered in one batch."""
    clock = Clock()
    ledger = make_ledger(requests=50, num_bytes=1000, clock=clock)
    for _ in range(10):
        (slot,) = queued(ledger)
        clock.now += 0.01
        ledger.leave_queue(slot)
        clock.now += 2.0
        ledger.release(slot, completed=True)
    queued(ledger, 20)
    assert ledger.expected_wait_s == 0.0


def test_keys():
    assert KeyRing(()).identify(None) == 0
    ring = KeyRing(("alpha", "beta"))
    assert ring.identify("beta") == 1
    for wrong in (None, "", "alph", "alphaa", "Alpha", "ключ", "\ud800"):
        with pytest.raises(AuthenticationError):
            ring.identify(wrong)


def test_the_rate_is_per_client_and_refills():
    clock = Clock()
    limiter = RateLimiter(2.0, clock)
    limiter.check(0)
    limiter.check(0)
    with pytest.raises(RateLimited) as caught:
        limiter.check(0)
    assert caught.value.retry_after_s == pytest.approx(0.5)
    limiter.check(1)
    clock.now += 0.5
    limiter.check(0)
    with pytest.raises(RateLimited):
        limiter.check(0)


def test_a_slow_rate_lets_the_first_request_through():
    clock = Clock()
    limiter = RateLimiter(0.1, clock)
    limiter.check(0)
    with pytest.raises(RateLimited) as caught:
        limiter.check(0)
    assert caught.value.retry_after_s == pytest.approx(10.0)
