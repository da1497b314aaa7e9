"""Where an answer ends: a stop string, the room that is left; and what the engine tells of its time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import load_model
from model.speech_llm import SpeechLLM
from model.tokenizer import Tokenizer
from server.engine.build import Sizes, assemble
from server.engine.core import EngineCore
from server.engine.detokenizer import Detokenizer
from server.engine.intake import Intake
from server.types import (
    Accepted,
    Delta,
    EngineConfig,
    Event,
    Finished,
    GenerateRequest,
    SamplingParams,
)
from tests.model.engine_runs import run
from tests.model.random_weights import noise_clip, small_config

WAVE = noise_clip(1.0).numpy()
PAGE = 4


@pytest.fixture(scope="module")
def model(endless: Path) -> SpeechLLM:
    return load_model(endless, torch.device("cpu"), torch.float64)[0]


def engine(model: SpeechLLM, tokenizer: Tokenizer, num_pages: int = 200, rows: int = 4) -> EngineCore:
    return assemble(EngineConfig(Path(), page_size=PAGE), model, tokenizer, Sizes(rows, 64, num_pages))


def ask(name: str, max_tokens: int, stop: tuple[str, ...] = (), *, heard: bool = True) -> GenerateRequest:
    sampling = SamplingParams(max_tokens, stop=stop)
    return GenerateRequest(name, "What was said?", WAVE if heard else None, b"wave" * heard, sampling)


def text_of(events: list[Event]) -> str:
    return "".join(event.text for event in events if isinstance(event, Delta))


def end_of(events: list[Event]) -> Finished:
    assert isinstance(events[-1], Finished)
    return events[-1]


def test_a_stop_string_ends_the_answer_and_frees_its_place(model: SpeechLLM, tokenizer: Tokenizer) -> None:
    core = engine(model, tokenizer)
    whole = text_of(run(core, ask("whole", 40))["whole"])
    middle = len(whole) // 2
    stop = whole[middle : middle + 3]
    events = run(core, ask("cut", 40, (stop,)), ask("beside", 40))
    assert text_of(events["cut"]) == whole[: whole.index(stop)]
    assert end_of(events["cut"]).finish_reason == "stop"
    assert end_of(events["cut"]).usage.completion_tokens < 40, "what follows a stop string is not computed"
    assert text_of(events["beside"]) == whole
    assert end_of(events["beside"]).finish_reason == "length"


def test_a_stop_string_that_the_last_allowed_token_completes_counts(
    model: SpeechLLM, tokenizer: Tokenizer
) -> None:
    core = engine(model, tokenizer)
    whole = text_of(run(core, ask("whole", 12))["whole"])
    events = run(core, ask("cut", 12, (whole[-2:],)))["cut"]
    assert text_of(events) == whole[: whole.index(whole[-2:])]
    assert end_of(events).finish_reason == "stop"


def test_a_stop_string_that_never_comes_costs_no_text(model: SpeechLLM, tokenizer: Tokenizer) -> None:
    core = engine(model, tokenizer)
    whole = text_of(run(core, ask("whole", 12))["whole"])
    assert text_of(run(core, ask("same", 12, (whole[-2:] + "\x00",)))["same"]) == whole


def test_an_answer_gets_no_more_than_the_room_that_is_left(tokenizer: Tokenizer) -> None:
    request = ask("r", 40, heard=False)
    length = len(Intake(small_config(), tokenizer, 256, None).sequence(request).prompt)
    assert Intake(small_config(), tokenizer, length + 3, None).sequence(request).max_tokens == 3
    assert Intake(small_config(), tokenizer, length + 40, None).sequence(request).max_tokens == 40


def test_an_answer_is_cut_to_the_room_and_says_length(model: SpeechLLM, tokenizer: Tokenizer) -> None:
    (accepted,) = engine(model, tokenizer).submit(ask("sizing", 1))
    assert isinstance(accepted, Accepted)
    num_pages = accepted.prompt_tokens // PAGE + 2
    room = num_pages * PAGE - accepted.prompt_tokens
    events = run(engine(model, tokenizer, num_pages), ask("r", 500))["r"]
    assert end_of(events).finish_reason == "length"
    assert end_of(events).usage.completion_tokens == room


def test_time_in_the_encoders_is_told(model: SpeechLLM, tokenizer: Tokenizer) -> None:
    core = engine(model, tokenizer)
    new, known = (end_of(run(core, ask(name, 8))[name]).timings for name in ("new", "known"))
    assert 0 < new.encode_ms < new.total_ms
    assert known.encode_ms == 0


def test_time_in_the_queue_is_told(model: SpeechLLM, tokenizer: Tokenizer) -> None:
    """One place: the second waits for all of the first."""
    core = engine(model, tokenizer, rows=1)
    events = run(core, ask("first", 8, heard=False), ask("second", 8, heard=False))
    first, second = (end_of(events[name]).timings for name in ("first", "second"))
    assert first.queue_ms < first.total_ms - first.queue_ms < second.queue_ms < second.total_ms


def test_the_position_counts_who_waits_ahead(model: SpeechLLM, tokenizer: Tokenizer) -> None:
    core = engine(model, tokenizer, rows=1)

    def position(name: str) -> int:
        (accepted,) = core.submit(ask(name, 4, heard=False))
        assert isinstance(accepted, Accepted)
        return accepted.queue_position

    assert position("running") == 0
    core.step()
    assert [position("a"), position("b")] == [0, 1], "in the inbox"
    core.step()
    core.abort("b")
    core.abort("running")
    assert position("c") == 2, "in the queue; the note of an abort is nobody who waits"
    core.abort("c")
    assert position("d") == 2, "who left before the engine looked is not ahead"


def test_the_engines_time_holds_its_own_reading_and_writing(
    model: SpeechLLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the submission, before the prompt is taken apart, to the end, after the text was put together."""

    def slow(method: Callable[..., Any]) -> Callable[..., Any]:
        def wait(*values: Any, **named: Any) -> Any:
            time.sleep(0.05)
            return method(*values, **named)

        return wait

    core = engine(model, tokenizer)
    run(core, ask("before", 2))
    monkeypatch.setattr(Intake, "_tokens", slow(Intake._tokens))
    monkeypatch.setattr(Detokenizer, "finish", slow(Detokenizer.finish))
    timings = end_of(run(core, ask("known", 2))["known"]).timings
    assert timings.queue_ms >= 50
    assert timings.total_ms >= 100
