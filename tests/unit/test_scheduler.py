"""The scheduler's rules on plain state, no model at all; at random against slots of known content."""

from __future__ import annotations

import gc
import itertools
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from server.engine.scheduler import SchedulerLimits
from server.engine.sequence import AdapterPass, Phase, Sequence
from server.types import Stage
from tests.unit.scheduler_sim import NEVER, Simulation, Sizes, make_sequence

INSTRUCTIONS = ((5,), (5, 6), (7,) * 9, (8,) * 17)
BAD_CLIP = bytes([1]) * 32


class SchedulerMachine(RuleBasedStateMachine):
    """Requests come, are cancelled, expire and fail in any phase; `Simulation` checks every step."""

    @initialize(
        num_pages=st.integers(6, 24),
        page_size=st.sampled_from([1, 2, 4]),
        max_batch_size=st.integers(1, 5),
        spare_tokens=st.sampled_from([1, 2, 5, 30]),
        encode_seconds=st.sampled_from([0.0, 30.0, 65.0]),
        prefill_beside=st.sampled_from([None, 1, 4]),
        clip_cost=st.sampled_from([0, 3, 1000]),
        scale_cost=st.sampled_from([0, 1, 1000]),
        reuse=st.booleans(),
    )
    def build(self, max_batch_size: int, spare_tokens: int, **sizes: object) -> None:
        tokens = max_batch_size + spare_tokens
        self.sim = Simulation(Sizes(max_batch_size=max_batch_size, max_batch_tokens=tokens, **sizes))
        self.order = 0
        self.work = 0

    @rule(
        clip=st.sampled_from([None, 0, 1, 1, 6]),
        adapter=st.sampled_from(INSTRUCTIONS),
        left=st.sampled_from([(1, 10, 11), (1, 10, 12, 12, 12, 12, 12), (1,)]),
        max_tokens=st.sampled_from([1, 3, 9, 20]),
        deadline=st.sampled_from([NEVER, NEVER, 5.0, 20.0]),
        queue_deadline=st.sampled_from([NEVER, NEVER, 1.0, 8.0]),
    )
    def submit(self, adapter: tuple[int, ...], deadline: float, queue_deadline: float, **fields) -> None:
        sequence = make_sequence(
            self.order,
            adapter=adapter,
            right=(*adapter, 20),
            deadline=self.sim.now + deadline,
            queue_deadline=self.sim.now + queue_deadline,
            **fields,
        )
        longest = max(len(sequence) + sequence.max_tokens, len(adapter))
        if longest > self.sim.sizes.max_context:
            return
        self.order += 1
        self.work += len(sequence) + sequence.max_tokens + len(adapter)
        self.sim.scheduler.add(sequence)

    @precondition(lambda self: self.sim.scheduler.has_work)
    @rule(failing=st.sampled_from([None, None, None, BAD_CLIP]), times=st.integers(1, 4))
    def step(self, failing: bytes | None, times: int) -> None:
        for _ in range(times):
            if self.sim.scheduler.has_work:
                self.sim.step(failing)

    @precondition(lambda self: self.sim.scheduler.has_work)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        live = self.sim.scheduler.live()
        self.sim.end(live[data.draw(st.integers(0, len(live) - 1))], "aborted")

    @rule(seconds=st.integers(1, 10))
    def wait(self, seconds: int) -> None:
        self.sim.now += seconds

    @invariant()
    def books_are_right(self) -> None:
        if hasattr(self, "sim"):
            self.sim.check()

    def teardown(self) -> None:
        if not hasattr(self, "sim"):
            return
        self.sim.run_dry(max_steps=(self.work + 10) * (self.order + 2))
        assert len(self.sim.finished) == self.order
        assert self.sim.scheduler.waiting_audio_seconds == 0.0
        assert self.sim.scheduler.num_waiting == self.sim.scheduler.num_running == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=400, stateful_step_count=40, deadline=None)


def submit(sim: Simulation, count: int, **fields: object) -> None:
    for order in range(count):
        sim.scheduler.add(make_sequence(order, **fields))


def test_an_idle_scheduler_has_nothing_to_do() -> None:
    sim = Simulation(Sizes())
    assert not sim.step()


def test_a_request_reads_its_instruction_while_its_clip_is_encoded() -> None:
    sim = Simulation(Sizes())
    submit(sim, 1)
    batch = sim.step()
    assert len(batch.encode) == 1
    assert isinstance(batch.prefills[0].owner, AdapterPass)
    (chunk,) = sim.step().prefills
    assert (chunk.start, chunk.stop) == (0, 7)
    assert sim.step().decodes
    assert sim.stages["r0"] is Stage.GENERATING


def test_a_request_without_audio_needs_neither_clip_nor_instruction() -> None:
    sim = Simulation(Sizes())
    submit(sim, 1, clip=None)
    batch = sim.step()
    assert not batch.encode
    assert [(chunk.start, chunk.stop) for chunk in batch.prefills] == [(0, 6)]


def test_requests_begin_in_order_of_arrival() -> None:
    sim = Simulation(Sizes(max_batch_size=2, max_batch_tokens=9))
    submit(sim, 7)
    sim.run_dry(200)
    assert sim.first_work == sorted(sim.first_work)


def test_an_older_prefill_is_not_held_up_by_younger_instructions() -> None:
    sim = Simulation(Sizes(max_batch_size=4, max_batch_tokens=5))
    oldest = make_sequence(0, left=(1,) * 20, clip=None)
    sim.scheduler.add(oldest)
    sim.step()
    for order in range(1, 6):
        sim.scheduler.add(make_sequence(order, adapter=(order,) * 30))
    steps = 1
    while oldest.phase is not Phase.DECODE:
        sim.step()
        steps += 1
    assert steps == -(-len(oldest.prompt) // 5)


def test_the_same_clip_and_instruction_are_computed_once_for_all() -> None:
    sim = Simulation(Sizes(max_batch_size=4))
    submit(sim, 4)
    encoded: Counter[bytes] = Counter()
    passes = 0
    while sim.scheduler.has_work:
        batch = sim.step()
        encoded.update(batch.encode)
        passes += sum(isinstance(chunk.owner, AdapterPass) for chunk in batch.prefills)
    assert list(encoded.values()) == [1]
    assert passes == 1
    assert (sim.scheduler.clips.hits, sim.scheduler.clips.misses) == (3, 1)


def test_no_clip_is_begun_while_a_pass_is_under_way() -> None:
    sim = Simulation(Sizes())
    for order in range(2):
        sim.scheduler.add(make_sequence(order, clip=order))
    under_way = sim.scheduler.schedule(1.0).encode
    assert len(under_way) == 1
    sim.scheduler.add(make_sequence(2, clip=0))
    sim.scheduler.take_stage_changes()
    assert not sim.scheduler.schedule(2.0, encoding=under_way).encode
    assert [(s.order, stage) for s, stage in sim.scheduler.take_stage_changes()] == [(2, Stage.ENCODING)]


def test_a_prompt_is_taken_in_whole_where_no_answer_waits() -> None:
    sim = Simulation(Sizes(max_batch_tokens=32, prefill_beside=2))
    sim.scheduler.add(make_sequence(0, left=(1,) * 20, clip=None))
    assert [c.stop - c.start for c in sim.step().prefills] == [23]
    sim.scheduler.add(make_sequence(1, left=(1,) * 20, clip=None))
    batch = sim.step()
    assert [c.stop - c.start for c in batch.prefills] == [2]
    assert len(batch.decodes) == 1
    beside_encoding = sim.scheduler.schedule(sim.now, encoding=(b"a clip",))
    assert [c.stop - c.start for c in beside_encoding.prefills] == [1]


def test_encoder_batches_keep_within_their_seconds_but_a_long_clip_goes_alone() -> None:
    sim = Simulation(Sizes(max_batch_size=4, encode_seconds=60.0))
    for order, seconds in enumerate((30.0, 30.0, 90.0, 30.0)):
        sim.scheduler.add(make_sequence(order, clip=order, seconds=seconds))
    sizes = []
    while sim.scheduler.clips.pending or not sizes:
        sizes.append(len(sim.step().encode))
    assert sizes == [2, 1, 1]


def test_no_more_is_encoded_ahead_than_the_cache_may_hold() -> None:
    """Pages for one at a time, clips of 9 tokens each for eight: two are more than the bound already."""
    sim = Simulation(Sizes(num_pages=8, clip_cost=10, max_batch_size=4, encode_seconds=30.0))
    for order in range(8):
        sim.scheduler.add(make_sequence(order, clip=8 + order, max_tokens=3))
    most = 0
    while sim.scheduler.has_work:
        sim.step()
        most = max(most, sim.scheduler.clips.cost_in_use)
    assert len(sim.finished) == 8
    assert most <= 16 + 15, "one that runs and one that waits, never all eight"


def test_who_came_later_holds_no_clip_back() -> None:
    """Questions about three encoded clips, more than the bound allows, come faster than they end."""
    sim = Simulation(Sizes(clip_cost=30, max_batch_size=4))
    orders = itertools.count()

    def ask_on() -> None:
        for clip in (12, 13, 14):
            sim.scheduler.add(make_sequence(next(orders), clip=clip, max_tokens=8))
        sim.step()

    for _ in range(5):
        ask_on()
    old = make_sequence(next(orders), clip=1)
    sim.scheduler.add(old)
    for _ in range(200):
        ask_on()
    assert old.request_id in sim.finished


def test_a_cache_of_nothing_holds_nobody_up() -> None:
    sim = Simulation(Sizes(clip_cost=0, max_batch_size=4, encode_seconds=30.0))
    for order in range(8):
        sim.scheduler.add(make_sequence(order, clip=order, max_tokens=3))
    sim.run_dry(40)
    assert len(sim.finished) == 8


def test_the_second_question_about_a_clip_reuses_its_pages() -> None:
    sim = Simulation(Sizes(page_size=2))
    first = make_sequence(0, clip=4, max_tokens=1)
    sim.scheduler.add(first)
    sim.run_dry(20)
    second = make_sequence(1, clip=4, max_tokens=1)
    other_clip = make_sequence(2, clip=3, max_tokens=1)
    other_instruction = make_sequence(3, clip=4, adapter=(6,), max_tokens=1)
    for sequence in (second, other_clip, other_instruction):
        sim.scheduler.add(sequence)
    sim.run_dry(30)
    assert first.num_cached == 0
    assert second.num_cached == (len(second.prompt) - 1) // 2 * 2
    assert other_clip.num_cached == 2
    assert other_instruction.num_cached == 0


def test_preemption_takes_the_youngest_and_changes_no_answer() -> None:
    answers = []
    for num_pages in (64, 5):
        sim = Simulation(Sizes(num_pages=num_pages, max_batch_size=3))
        for order in range(4):
            sim.scheduler.add(make_sequence(order, clip=None, right=(20 + order,), max_tokens=16))
        while sim.scheduler.has_work:
            before = {s.order for s in sim.scheduler.live() if s.pages}
            sim.step()
            after = {s.order for s in sim.scheduler.live() if s.pages}
            lost = {order for order in before - after if f"r{order}" not in sim.finished}
            assert not lost or min(lost) > max(after, default=-1)
        answers.append(sim.answers)
    assert sim.scheduler.num_preemptions > 0
    assert answers[0] == answers[1]


def test_expiry_of_the_queue_spares_those_that_have_started() -> None:
    sim = Simulation(Sizes(max_batch_size=1, max_batch_tokens=2))
    submit(sim, 4, clip=None, queue_deadline=4.5)
    sim.run_dry(100)
    assert sim.finished["r0"] in ("stop", "length")
    assert [sim.finished[f"r{i}"] for i in (1, 2, 3)] == ["expired"] * 3


def test_a_deadline_ends_a_request_in_whatever_phase_once() -> None:
    sim = Simulation(Sizes(max_batch_size=2, max_batch_tokens=3))
    submit(sim, 4, max_tokens=50, deadline=9.0, queue_deadline=9.0)
    sim.run_dry(20)
    assert set(sim.finished.values()) == {"expired"}
    assert sim.scheduler.expired(NEVER) == []


def test_ended_requests_are_not_kept_until_their_deadline() -> None:
    sim = Simulation(Sizes())
    submit(sim, 3, deadline=987654321.0, queue_deadline=1e8)
    sim.run_dry(50)
    sim.answers.clear()
    gc.collect()
    assert not [
        thing for thing in gc.get_objects() if type(thing) is Sequence and thing.deadline == 987654321.0
    ]


def test_deadlines_are_not_kept_for_as_long_as_they_last() -> None:
    scheduler = Simulation(Sizes()).scheduler
    for order in range(4000):
        scheduler.add(make_sequence(order, deadline=1e8 + order, queue_deadline=1e7 + order))
        if order >= 10:
            scheduler.end(scheduler.live()[0])
        if order == 1000:
            tracemalloc.start()
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 100_000, "two deadlines of 3,000 requests take seven times that"
    assert len(scheduler.expired(NEVER)) == 10


def test_ended_requests_are_not_kept_while_all_places_are_taken() -> None:
    """Some were ready, some behind the window of those that may get ready; neither waits for its turn."""
    sim = Simulation(Sizes(max_batch_size=1, num_pages=200))
    sim.scheduler.add(make_sequence(0, max_tokens=400))
    for _ in range(4):
        sim.step()
    for round in range(5):
        for order in range(1 + 4 * round, 5 + 4 * round):
            sim.scheduler.add(make_sequence(order, deadline=987654322.0))
        sim.step()
        for sequence in sim.scheduler.live()[1:]:
            sim.end(sequence, "aborted")
    del sequence
    sim.answers.clear()
    gc.collect()
    assert not [s for s in gc.get_objects() if type(s) is Sequence and s.deadline == 987654322.0]


def test_an_instruction_waits_like_the_oldest_that_still_wants_it() -> None:
    sim = Simulation(Sizes(max_batch_size=8, max_batch_tokens=9))
    for order, adapter in enumerate(((5,) * 30, (6,) * 30, (5,) * 30)):
        sim.scheduler.add(make_sequence(order, adapter=adapter))
    assert [chunk.owner.order for chunk in sim.step().prefills] == [0]
    sim.end(sim.scheduler.live()[0], "aborted")
    assert [chunk.owner.order for chunk in sim.step().prefills] == [1]
    sim.run_dry(100)


def test_a_failing_clip_ends_its_requests_and_their_instruction_alone() -> None:
    sim = Simulation(Sizes())
    sim.scheduler.add(make_sequence(0, clip=1, adapter=(5,)))
    sim.scheduler.add(make_sequence(1, clip=0, adapter=(6,)))
    sim.step(failing_clip=BAD_CLIP)
    assert sim.finished == {"r0": "failed"}
    sim.run_dry(20)
    assert sim.finished["r1"] in ("stop", "length")


def test_the_last_abort_before_the_instruction_is_read_frees_its_pages() -> None:
    sim = Simulation(Sizes(max_batch_size=1, max_batch_tokens=2))
    submit(sim, 2, adapter=(5,) * 9)
    sim.step()
    for sequence in sim.scheduler.live():
        assert sim.scheduler.pages.num_used > 0
        sim.end(sequence, "aborted")
        sim.check()
    assert sim.scheduler.pages.num_used == 0


def test_limits_that_could_never_prefill_are_refused() -> None:
    with pytest.raises(ValueError, match="max_batch_tokens"):
        SchedulerLimits(max_batch_size=4, max_batch_tokens=4)


def count_opcodes(call: Callable[[], object]) -> int:
    """Python instructions that `call` takes: a cost that no clock and no neighbour disturbs."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def test_the_cost_of_a_step_does_not_grow_with_the_queue() -> None:
    costs = []
    for waiting in (100, 10_000):
        sim = Simulation(Sizes(num_pages=256, max_batch_size=8, max_batch_tokens=64))
        submit(sim, waiting, clip=None, max_tokens=50, deadline=1e9, queue_deadline=1e8)
        for _ in range(5):
            sim.step()
        costs.append(count_opcodes(lambda sim=sim: sim.scheduler.schedule(sim.now + 1)))
    assert costs[0] == costs[1] > 100


def test_aborting_out_of_a_long_queue_costs_the_same_as_out_of_a_short_one() -> None:
    costs = []
    for waiting in (100, 10_000):
        sim = Simulation(Sizes())
        submit(sim, waiting)
        sim.step()
        victim = sim.scheduler.live()[-1]
        costs.append(count_opcodes(lambda sim=sim, victim=victim: sim.scheduler.end(victim)))
    assert costs[0] == costs[1]
