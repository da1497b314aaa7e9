"""A pass over clips goes on beside running answers, a slice in every step, and stops when nobody wants it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from model import pieces
from model.pieces import finish
from model.speech_llm import SpeechLLM
from model.tokenizer import Tokenizer
from server.engine.build import Budgets, Sizes, assemble
from server.engine.core import EngineCore
from server.engine.encoding import Encoding
from server.engine.runner import PieceClock, Runner
from server.types import (
    Delta,
    EngineConfig,
    Event,
    Failed,
    Finished,
    GenerateRequest,
    SamplingParams,
    Stage,
    StageChanged,
)
from tests.model.engine_runs import key_of
from tests.model.random_weights import noise_clip

SIZES = Sizes(max_batch_size=4, max_batch_tokens=64, num_pages=200)
LONG, SHORT = noise_clip(5.0).numpy(), noise_clip(0.4, seed=2).numpy()


class BrokenAtTheEnd(Runner):
    """The long clip fails in its last piece."""

    def encoding(self, clips):
        made = yield from super().encoding(clips)
        if key_of(LONG) in clips:
            raise RuntimeError("out of memory")
        return made


def ask(name: str, wave: np.ndarray | None, max_tokens: int = 6) -> GenerateRequest:
    key = b"" if wave is None else key_of(wave)
    return GenerateRequest(name, "What was said?", wave, key, SamplingParams(max_tokens))


@pytest.fixture
def core(exact: SpeechLLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> EngineCore:
    """An engine that computes one small piece of a pass in every step."""
    monkeypatch.setattr(pieces, "CPU_FLOPS", 2e6)
    return sliced(exact, tokenizer, Runner)


def sliced(model: SpeechLLM, tokenizer: Tokenizer, runner: type[Runner]) -> EngineCore:
    budgets = Budgets(slice_s=0.0, encode_seconds=60.0)
    return assemble(EngineConfig(Path(), page_size=4), model, tokenizer, SIZES, budgets, runner)


def step(core: EngineCore) -> tuple[Event, ...]:
    events = core.step().events
    core.check_integrity()
    return events


def drain(core: EngineCore) -> list[Event]:
    events: list[Event] = []
    while core.wait(0.0):
        events += step(core)
    assert core.encoding.keys == ()
    return events


def ids(events: list[Event], name: str) -> list[int]:
    mine = [event for event in events if isinstance(event, Delta) and event.request_id == name]
    return [token for event in mine for token in event.token_ids]


def test_answers_go_on_in_every_step_of_a_pass(core: EngineCore) -> None:
    core.submit(ask("running", None, max_tokens=40))
    step(core)
    core.submit(ask("long", LONG))
    steps = 0
    while not core.runner._clips and steps < 30:
        events = step(core)
        assert [e.request_id for e in events if isinstance(e, Delta)] == ["running"]
        steps += 1
    assert steps == 30, "the pass is over before it could hold anything up"
    events = drain(core)
    assert sum(isinstance(event, Finished) for event in events) == 2


def test_a_pass_in_slices_gives_what_it_gives_at_once(
    core: EngineCore, exact: SpeechLLM, tokenizer: Tokenizer
) -> None:
    core.submit(ask("a", LONG))
    core.submit(ask("b", SHORT))
    sliced_events = drain(core)
    with torch.inference_mode():
        both = finish(core.runner.encoding({key_of(LONG): LONG, key_of(SHORT): SHORT}))
    for key, embeddings in both.items():
        assert torch.allclose(core.runner._clips[key], embeddings, rtol=0, atol=1e-9)
    whole = assemble(EngineConfig(Path(), page_size=4), exact, tokenizer, SIZES)
    whole.submit(ask("a", LONG))
    assert ids(drain(whole), "a") == ids(sliced_events, "a")


def test_a_pass_that_nobody_wants_is_not_finished(core: EngineCore) -> None:
    core.submit(ask("long", LONG))
    for _ in range(3):
        step(core)
    assert core.encoding.keys == (key_of(LONG),)
    core.abort("long")
    step(core)
    assert core.encoding.keys == ()
    assert not core.runner._clips
    core.submit(ask("next", SHORT))
    assert isinstance(drain(core)[-1], Finished)


def test_a_clip_wanted_again_before_its_pass_ends_is_kept(core: EngineCore) -> None:
    core.submit(ask("first", LONG))
    core.submit(ask("other", SHORT))
    for _ in range(3):
        step(core)
    core.abort("first")
    step(core)
    core.submit(ask("again", LONG))
    events = drain(core)
    assert {e.request_id for e in events if isinstance(e, Finished)} == {"other", "again"}
    assert core.stats().encoder_cache_misses == 3


def test_a_late_asker_is_told_that_its_clip_is_being_encoded(core: EngineCore) -> None:
    core.submit(ask("first", LONG))
    step(core)
    core.submit(ask("late", LONG))
    stages = [e.stage for e in step(core) if isinstance(e, StageChanged) and e.request_id == "late"]
    assert stages == [Stage.ENCODING]
    drain(core)


def test_a_pass_that_breaks_late_costs_its_culprit_alone(
    exact: SpeechLLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "CPU_FLOPS", 2e6)
    core = sliced(exact, tokenizer, BrokenAtTheEnd)
    for name, wave in (("bad", LONG), ("bad-too", LONG), ("good", SHORT)):
        core.submit(ask(name, wave))
    events = drain(core)
    assert sorted(e.request_id for e in events if isinstance(e, Failed)) == ["bad", "bad-too"]
    assert [e.request_id for e in events if isinstance(e, Finished)] == ["good"]


class Timed:
    """Pieces that last so long by a clock of the test's own, which the runner reads too."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
        self.now = 0.0
        self.pieces = self._pieces(seconds)
        self.clock = PieceClock()
        monkeypatch.setattr("server.engine.runner.time.perf_counter", lambda: self.now)

    def _pieces(self, durations):
        for seconds in durations:
            self.now += seconds
            yield
        return {}


def test_a_slice_ends_before_its_budget(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces of 10 ms: three fit 35 ms."""
    work = Timed(monkeypatch, *[0.010] * 5)
    assert core.runner.advance(work.pieces, 0.035, work.clock) is None
    assert work.now == pytest.approx(0.030)
    assert core.runner.advance(work.pieces, 0.0, work.clock) is None
    assert work.now == pytest.approx(0.040), "at least one"
    assert core.runner.advance(work.pieces, 1.0, work.clock) == {}


def test_a_third_of_a_slice_is_left_for_hiccups(core: EngineCore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a slice of 100 ms six pieces of 10 ms are planned."""
    work = Timed(monkeypatch, *[0.010] * 12)
    encoding = Encoding(core.runner, slice_s=0.100)
    monkeypatch.setattr(core.runner, "encoding", lambda clips: work.pieces)
    encoding.begin({b"clip": LONG})
    assert encoding.advance() == {}
    assert work.now == pytest.approx(0.060)


def test_a_slice_expects_pieces_as_long_as_those_of_the_slice_before(
    core: EngineCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a piece of 30 ms and two of 10 ms, one that may take 24 ms does not fit 40 ms any more."""
    work = Timed(monkeypatch, 0.030, 0.010, 0.010, 0.030, 0.010)
    assert core.runner.advance(work.pieces, 0.030, work.clock) is None
    assert work.now == pytest.approx(0.030)
    assert core.runner.advance(work.pieces, 0.040, work.clock) is None
    assert work.now == pytest.approx(0.050)
