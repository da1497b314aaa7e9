"""The engine's stages, timed as its own steps take them, in turn with floors and with stock encoders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch

from benchmarks.floor import work
from benchmarks.floor.machine import Chain, seconds
from benchmarks.floor.stock import StockEncoders
from benchmarks.floor.work import Work
from benchmarks.in_process import SteppedEngine, heard
from benchmarks.peers.questions import QuestionMaker
from model.prompt import adapter_ids
from model.tokenizer import Tokenizer
from server.bench.types import BenchError

Seconds = dict[str, float]
"""By stage."""
ANSWER_TOKENS = 1000
"""More than are decoded while a step is measured."""


@dataclass(frozen=True, slots=True)
class Stage:
    """is_counted: the floor is all operations at the products' rate; else it is the products' own time."""

    work: Work
    chain: Chain
    is_counted: bool

    def floor(self, products_s: float) -> float:
        """Seconds. products_s: what the chain took."""
        return products_s * self.work.flops / self.work.product_flops if self.is_counted else products_s


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds of one stage in one repetition, each the least of several goes."""

    engine_s: float
    floor_s: float
    stock_s: float | None


@dataclass(frozen=True, slots=True)
class Probe:
    """Stages that are timed together. go: the engine's seconds. stock: other ways to compute the same."""

    stages: dict[str, Stage]
    go: Callable[[], Seconds]
    goes: int
    stock: dict[str, Callable[[], float]] = field(default_factory=dict)

    def measure(self) -> dict[str, Measured]:
        """One repetition: all sides in turn, so that a slow spell of the machine meets all of them."""
        engine: list[Seconds] = []
        chains: list[Seconds] = []
        others: list[Seconds] = []
        for _ in range(self.goes):
            engine.append(self.go())
            chains.append({name: stage.chain.run() for name, stage in self.stages.items()})
            others.append({name: run() for name, run in self.stock.items()})
        return {
            name: Measured(
                least(engine, name),
                stage.floor(least(chains, name)),
                least(others, name) if name in self.stock else None,
            )
            for name, stage in self.stages.items()
        }


def least(goes: list[Seconds], name: str) -> float:
    """The fastest go of a stage: what else runs can only add."""
    return min(go[name] for go in goes)


class Stages:
    """Makes the probes of one engine. Questions have 20 tokens and are about clips of one length."""

    def __init__(self, engine: SteppedEngine, make: QuestionMaker, tokenizer: Tokenizer) -> None:
        self._engine = engine
        self._model = engine.core.runner.model
        self._make = make
        self._tokenizer = tokenizer
        self._clip = make.clip()
        self.prompt_tokens = engine.submit(make.about(self._clip), 1).prompt_tokens
        engine.steps_to_the_end()

    def encode(self) -> Probe:
        """Both encoders with their branches, on one clip."""
        encoder = self._model.audio_encoder
        wave = torch.from_numpy(heard(self._clip.data).waveform)
        clip = self._model.clip_features(wave)
        whisper = work.whisper(encoder, len(clip.log_mel), clip.num_frames)
        wavlm = work.wavlm(encoder, len(wave))
        stock = StockEncoders(encoder)
        compared = {"whisper": stock.encode_whisper, "wavlm": stock.encode_wavlm}
        return Probe(
            {"whisper": self._stage(whisper, True), "wavlm": self._stage(wavlm, True)},
            self._encode,
            goes=3,
            stock={name: partial(self._stock, run, clip) for name, run in compared.items()},
        )

    def prompt(self) -> Probe:
        """The prompt pass of a new instruction, then the prefill of its prompt about a known clip."""
        llama, instruction = self._model.llama, self._make.instruction()
        read = len(adapter_ids(self._tokenizer, instruction))
        return Probe(
            {
                "prompt pass": self._stage(work.prompt_pass(llama, self._model.prompt_adapter, read), True),
                "prefill": self._stage(work.prefill(llama, self.prompt_tokens), True),
            },
            self._prompt,
            goes=4,
        )

    def decode(self, batch: int) -> Probe:
        """One token of so many answers; they run until the engine is told to drop them."""
        self._engine.fill(self._make.about(self._clip), batch, ANSWER_TOKENS)
        counted = work.decode(self._model.llama, [self.prompt_tokens + 1] * batch)
        return Probe(
            {f"decode {batch}": self._stage(counted, False)}, partial(self._decode, batch), goes=12
        )

    def _stage(self, counted: Work, is_counted: bool) -> Stage:
        return Stage(counted, Chain(counted.products, self._engine.num_threads), is_counted)

    def _encode(self) -> Seconds:
        engine, took = self._engine, Seconds()
        engine.submit(self._make.about(self._make.clip()), 1)
        while len(took) < 2:
            took |= {run.encoder: run.seconds for run in engine.step().output.encoder_runs}
        engine.drop_all()
        return took

    def _prompt(self) -> Seconds:
        self._engine.submit(self._make.about(self._clip), 1)
        steps = self._engine.steps_to_the_end()
        if [step.num_tokens for step in steps] != [0, 1]:
            raise BenchError(f"not a prompt pass and a prefill: {[step.output.events for step in steps]}")
        return {"prompt pass": steps[0].seconds, "prefill": steps[1].seconds}

    def _decode(self, batch: int) -> Seconds:
        step = self._engine.step()
        if step.num_tokens != batch:
            raise BenchError(f"{step.num_tokens} answers got a token, not {batch}")
        return {f"decode {batch}": step.seconds}

    def _stock(self, run: Callable[..., object], clip: object) -> float:
        torch.set_num_threads(self._engine.num_threads)
        return seconds(lambda: run(clip))
