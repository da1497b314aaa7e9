"""The pure parts of the comparison with the peers: what is asked, how batches fill, how rounds add up."""

from __future__ import annotations

import asyncio
import math

import pytest

from benchmarks.peers.arms import Arm, Round, agreement, ask, check, covered, ratios
from benchmarks.peers.questions import QuestionMaker, Shape, decoded, thinned
from benchmarks.peers.sides import gather
from benchmarks.peers.targets import Target
from benchmarks.peers.waiting import check_set
from benchmarks.record import Spread
from server.bench.types import Arrival, BenchError, Exchange, Load, Outcome, Piece, Question, Record
from server.os_process import COMPUTING
from tests.locks import pins

SHAPE = Shape(clip_seconds=0.1, instruction_tokens=7, answer_tokens=3, num_questions=6, per_clip=2, sample=3)


def exchange(ids: tuple[int, ...], first: float = 1.0, end: float = 2.0) -> Exchange:
    """An answer whose tokens come evenly from `first` on."""
    pieces = tuple(Piece(first + index, "", (token,)) for index, token in enumerate(ids))
    return Exchange(Outcome.OK, end, pieces)


def round_of(*answers: Exchange, due: float = 0.0) -> Round:
    """All questions are due at the same instant."""
    questions = QuestionMaker(str.split, SHAPE, 1).round(len(answers))
    records = tuple(Record(Arrival(i, 0.0, i), due, due, due, one) for i, one in enumerate(answers))
    return Round(questions, Load(math.inf, len(records), records, ()))


class Parrot:
    """Answers everything by the same ids."""

    num_tokens = 2

    def __init__(self, *ids: int) -> None:
        self.ids = ids
        self.asked: list[str] = []

    def take(self, questions: object) -> None:
        pass

    async def ask(self, question: Question, leave_after: int | None = None) -> Exchange:
        self.asked.append(question.id)
        return exchange(self.ids)


def test_instructions_have_exactly_their_tokens_and_none_comes_twice() -> None:
    make = QuestionMaker(str.split, SHAPE, 1)
    prompts = [question.prompt for _ in range(5) for question in make.round()]
    assert {len(prompt.split()) for prompt in prompts} == {7}
    assert len(set(prompts)) == len(prompts) == 30


def test_every_round_has_new_clips_each_with_its_share_of_questions() -> None:
    make = QuestionMaker(str.split, SHAPE, 1)
    rounds = [make.round(), make.round(), make.round(per_clip=1)]
    clips = [[question.clip.name for question in some] for some in rounds]
    assert [len(set(names)) for names in clips] == [3, 3, 6]
    assert all(clips[0].count(name) == 2 for name in clips[0])
    assert len({question.clip.data for some in rounds for question in some}) == 12
    assert len(decoded(rounds[0])[rounds[0][0].id].waveform) == 1600


def test_an_instruction_that_cannot_be_made_is_an_error() -> None:
    with pytest.raises(ValueError, match="no other instruction of 7 tokens"):
        QuestionMaker(lambda text: text.split() * 2, SHAPE, 1).instruction()


def test_a_sample_is_spread_over_the_clips() -> None:
    questions = QuestionMaker(str.split, SHAPE, 1).round()
    sample = thinned(questions, 3)
    assert len({question.clip.name for question in sample}) == 3
    assert thinned(questions, 6) == questions


@pytest.mark.parametrize(
    ("spans", "length"),
    [([(0, 2), (5, 6)], 3), ([(0, 4), (1, 2), (3, 4)], 4), ([(3, 5), (0, 4)], 5), ([(1, 1)], 0)],
)
def test_the_union_of_intervals(spans: list[tuple[float, float]], length: float) -> None:
    assert covered(spans) == length


def test_decoding_is_counted_once_however_many_answers_are_under_way() -> None:
    together = round_of(exchange((1, 2, 3), 1.0, 3.0), exchange((1, 2, 3), 1.0, 3.0))
    in_turn = round_of(exchange((1, 2, 3), 1.0, 3.0), exchange((1, 2, 3), 7.0, 9.0))
    assert together.decode_tokens_per_s == 2.0
    assert in_turn.decode_tokens_per_s == 1.0


def test_requests_are_counted_from_the_first_send_to_the_last_end() -> None:
    done = round_of(exchange((1, 2), 2.0, 3.0), exchange((1, 2), 4.0, 6.0), due=1.0)
    assert done.requests_per_s == 2 / 5
    assert done.ttft_p95_s == pytest.approx(1.0 + 0.95 * 2.0)


def test_an_answer_that_is_not_whole_ends_the_run() -> None:
    check(exchange((1, 2)), 2)
    with pytest.raises(BenchError, match="1 of 2 tokens"):
        check(exchange((1,)), 2)
    with pytest.raises(BenchError, match="failed"):
        check(Exchange(Outcome.FAILED, 1.0, detail="broke"), 2)


async def test_each_question_is_asked_once() -> None:
    parrot = Parrot(1, 2)
    questions = QuestionMaker(str.split, SHAPE, 1).round()
    done = await ask(parrot, questions)
    assert sorted(parrot.asked) == sorted(question.id for question in questions)
    assert done.answers == {question.id: (1, 2) for question in questions}


async def test_agreement_counts_equal_answers_and_refuses_other_work() -> None:
    questions = QuestionMaker(str.split, SHAPE, 1).round()
    arms = [Arm(f"arm {ids}", Parrot(*ids), [questions]) for ids in ((1, 2), (1, 2), (1, 3))]
    for arm in arms:
        await arm.measure()
    assert agreement(arms[0], arms[1]) == {"compared": 6, "equal": 6}
    assert ratios(arms[0], arms[1]).count == 1
    with pytest.raises(BenchError, match="only 0 of 6"):
        agreement(arms[0], arms[2])


async def test_a_batch_goes_when_it_is_full_or_its_wait_is_over() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()
    for item in range(5):
        queue.put_nowait(item)
    assert await asyncio.wait_for(gather(queue, 3, 60.0), 1) == [0, 1, 2]
    assert await asyncio.wait_for(gather(queue, 3, 0.01), 1) == [3, 4]


async def test_a_batch_takes_what_comes_while_it_waits() -> None:
    queue: asyncio.Queue[int] = asyncio.Queue()
    waiting = asyncio.create_task(gather(queue, 3, 60.0))
    for item in range(3):
        await asyncio.sleep(0)
        assert not waiting.done()
        queue.put_nowait(item)
    assert await asyncio.wait_for(waiting, 1) == [0, 1, 2]


def test_a_target_is_met_by_the_median_on_its_side_of_the_bound() -> None:
    spread = Spread(2.0, 1.0, 3.0, 3)
    assert Target("more", 2.0).is_met(spread)
    assert not Target("more", 2.1).is_met(spread)
    assert Target("less", 2.0, at_least=False).is_met(spread)
    assert not Target("less", 1.9, at_least=False).is_met(spread)


def test_the_lock_of_the_peers_moves_no_pin() -> None:
    peers, main = pins("requirements-bench.lock"), pins("requirements.lock")
    assert "litserve" in peers
    assert not peers.keys() & main.keys()


def test_a_run_whose_threads_wait_by_accident_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in COMPUTING.items():
        monkeypatch.setenv(name, value)
    check_set()
    monkeypatch.delenv("GOMP_SPINCOUNT")
    with pytest.raises(BenchError, match="not set"):
        check_set()
