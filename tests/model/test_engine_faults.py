"""What breaks inside one request stays inside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from model.fused_llama import FusedLlama
from model.speech_llm import SpeechLLM
from model.tokenizer import Tokenizer
from server.engine.build import Budgets, Sizes, assemble
from server.engine.core import EngineCore
from server.engine.runner import Results, Runner
from server.engine.sequence import AdapterPass
from server.types import Delta, EngineConfig, Event, Failed, Finished, GenerateRequest, SamplingParams
from tests.model.engine_runs import key_of, run
from tests.model.random_weights import noise_clip

GOOD = noise_clip(1.0).numpy()
BAD = np.full(8000, 0.25, dtype=np.float32)
OVERFLOWING = noise_clip(0.5, seed=9).numpy()
SIZES = Sizes(max_batch_size=4, max_batch_tokens=64, num_pages=120)


class FragileRunner(Runner):
    """Fails on batches that hold the bad clip, as an encoder would that a clip drives out of memory."""

    def encoding(self, clips):
        if key_of(BAD) in clips:
            raise RuntimeError("no kernel for this clip")
        return (yield from super().encoding(clips))


class OverflowingRunner(Runner):
    """One clip's embeddings are not finite, as after an overflow in half precision."""

    def encoding(self, clips):
        made = yield from super().encoding(clips)
        if key_of(OVERFLOWING) in clips:
            made[key_of(OVERFLOWING)] = torch.full_like(made[key_of(OVERFLOWING)], float("nan"))
        return made


def request(name: str, wave: np.ndarray, prompt: str = "What was said?") -> GenerateRequest:
    return GenerateRequest(name, prompt, wave, key_of(wave), SamplingParams(max_tokens=6))


Build = Callable[[type[Runner]], EngineCore]


@pytest.fixture(params=["fused", "plain"])
def build(request: pytest.FixtureRequest, exact: SpeechLLM, tokenizer: Tokenizer) -> Build:
    """An engine of its own around this kind of runner, with the kernels that serve on a CPU and without."""

    def build_core(runner: type[Runner]) -> EngineCore:
        def make(model: SpeechLLM, num_pages: int, page_size: int, fused: FusedLlama, *_: object) -> Runner:
            return runner(model, num_pages, page_size, fused if request.param == "fused" else None)

        config = EngineConfig(Path(), page_size=4)
        core = assemble(config, exact, tokenizer, SIZES, Budgets(encode_seconds=60.0), make)
        assert (core.runner.fused is not None) == (request.param == "fused")
        return core

    return build_core


def ids(events: list[Event]) -> list[int]:
    return [token for event in events if isinstance(event, Delta) for token in event.token_ids]


@pytest.mark.parametrize("prompt", ["What was said?", "Another question that nobody else asks."])
def test_a_clip_that_cannot_be_encoded_fails_its_own_requests_alone(build: Build, prompt: str) -> None:
    core = build(FragileRunner)
    alone = run(core, request("alone", GOOD))["alone"]
    events = run(
        core,
        request("a", GOOD),
        request("bad", BAD, prompt),
        request("bad-too", BAD, prompt),
        request("b", GOOD, "Is there only one speaker?"),
    )
    for name in ("bad", "bad-too"):
        assert isinstance(events[name][-1], Failed), "the failure is the last event"
        assert sum(isinstance(event, Failed) for event in events[name]) == 1
        assert "kernel" not in events[name][-1].error.message
    assert ids(events["a"]) == ids(alone)
    assert isinstance(events["b"][-1], Finished)


def test_what_a_broken_request_left_in_the_cache_reaches_nobody(build: Build) -> None:
    expected = ids(run(build(Runner), request("alone", GOOD))["alone"])
    core = build(Runner)
    core.runner.cache.keys.fill_(float("nan"))
    core.runner.cache.values.fill_(float("inf"))
    events = run(core, request("a", GOOD), request("b", GOOD[:9000], "How many?"))
    assert ids(events["a"]) == expected
    assert isinstance(events["b"][-1], Finished)


def test_a_request_whose_numbers_are_not_finite_fails_alone(build: Build) -> None:
    expected = ids(run(build(Runner), request("alone", GOOD))["alone"])
    core = build(OverflowingRunner)
    events = run(core, request("a", GOOD), request("bad", OVERFLOWING), request("b", GOOD))
    assert isinstance(events["bad"][-1], Failed)
    assert ids(events["a"]) == ids(events["b"]) == expected
    for name in ("c", "d", "e"):
        assert ids(run(core, request(name, GOOD))[name]) == expected


@pytest.mark.parametrize("prompt", ["What was said?", "Say who speaks, where, how and to whom. " * 3])
def test_broken_numbers_are_nobodys_prefix(build: Build, prompt: str) -> None:
    """Alone and first, so that the text before the clip is its own: the next request must not read it."""
    expected = ids(run(build(Runner), request("alone", GOOD, prompt))["alone"])
    core = build(OverflowingRunner)
    (failed,) = [e for e in run(core, request("bad", OVERFLOWING, prompt))["bad"] if isinstance(e, Failed)]
    assert "audio embeddings are not finite" in failed.error.message
    assert ids(run(core, request("a", GOOD, prompt))["a"]) == expected


class OverflowingForward(Runner):
    """The language model's own numbers overflow, on the first forward that ends a prompt."""

    has_overflown = False

    def forward(self, prefills, decodes) -> Results:
        results = super().forward(prefills, decodes)
        if not self.has_overflown and results.tokens:
            self.has_overflown = True
            for page in (page for chunk in prefills for page in chunk.owner.pages):
                self.cache.keys[:, page] = float("nan")
            return Results({}, [*results.broken, *results.tokens])
        return results


def test_pages_of_a_request_that_overflowed_are_not_read_again(build: Build) -> None:
    expected = ids(run(build(Runner), request("alone", GOOD))["alone"])
    core = build(OverflowingForward)
    assert isinstance(run(core, request("bad", GOOD))["bad"][-1], Failed)
    assert core.scheduler.pages.num_cached == 0
    assert ids(run(core, request("a", GOOD))["a"]) == expected


class StumblingRunner(Runner):
    """Fails once on a later chunk of an instruction, when all was computed: as sampling without memory."""

    has_stumbled = False

    def forward(self, prefills, decodes) -> Results:
        results = super().forward(prefills, decodes)
        if not self.has_stumbled and any(isinstance(c.owner, AdapterPass) and c.start for c in prefills):
            self.has_stumbled = True
            raise RuntimeError("out of memory")
        return results


def test_an_instruction_that_is_read_again_is_read_as_the_first_time(build: Build) -> None:
    long = request("long", GOOD, "Say who speaks, in which language, how, where, and to whom. " * 3)
    expected = ids(run(build(Runner), long)["long"])
    core = build(StumblingRunner)
    assert ids(run(core, long)["long"]) == expected
    assert core.runner.has_stumbled


def test_a_waveform_goes_when_its_embeddings_were_found(build: Build) -> None:
    core = build(Runner)
    run(core, request("first", GOOD))
    core.submit(request("again", GOOD))
    core.step()
    assert core.scheduler.find("again") is not None
    assert not core._waveforms
    run(core)
