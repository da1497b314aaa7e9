"""All stages of a model against their floors, and against what the machine reads and multiplies at best."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.floor.machine import matrix_rate, read_bandwidth
from benchmarks.floor.stages import Measured, Probe, Stages
from benchmarks.floor.targets import FLOORS, STOCKS
from benchmarks.in_process import SteppedEngine
from benchmarks.peers import waiting
from benchmarks.peers.arms import note
from benchmarks.peers.questions import QuestionMaker, Shape
from benchmarks.peers.targets import Outcome, Target
from model.checkpoint_format import TOKENIZER_FILE
from model.tokenizer import Tokenizer

SEED = 4
REPETITIONS = 3
BATCHES = (1, 8, 32)

Probed = tuple[Probe, list[dict[str, Measured]]]
"""A probe, and its repetitions."""


def floor(
    model: Path,
    repetitions: int = REPETITIONS,
    clip_seconds: float = 10.0,
    batches: Sequence[int] = BATCHES,
) -> Outcome:
    """Every stage over its floor, decoding at these batches.

    Raises BenchError if the engine does other steps than are counted.
    """
    engine = SteppedEngine(model)
    bandwidth, rate = read_bandwidth(engine.num_threads), matrix_rate(engine.num_threads)
    note(f"reads {bandwidth / 1e9:.3g} GB/s, multiplies {rate / 1e9:.3g} GFLOP/s")
    tokenizer = Tokenizer(model / TOKENIZER_FILE)
    make = QuestionMaker(tokenizer.encode, Shape(clip_seconds), SEED)
    stages = Stages(engine, make, tokenizer)
    makers = [stages.encode, stages.prompt, *(lambda batch=b: stages.decode(batch) for b in batches)]
    reached: dict[Target, record.Spread] = {}
    rows: dict[str, Any] = {}
    for make_probe in makers:
        probe = make_probe()
        rounds = [probe.measure() for _ in range(repetitions)]
        engine.drop_all()
        for name in probe.stages:
            measured = [one[name] for one in rounds]
            reached |= reached_by(name, measured)
            rows[name] = summary(probe, name, measured, bandwidth, rate)
            note(f"{name}: {rows[name]['over_floor']}")
    setup = record.setup(
        SEED,
        model=engine.core.info.name,
        clip_seconds=clip_seconds,
        threads=dataclasses.asdict(engine.core.runner.threads),
        waiting=waiting.settings(),
    )
    speeds = {"read_bytes_per_s": bandwidth, "matrix_flops_per_s": rate}
    ratio = {target.sentence: spread for target, spread in reached.items()}
    return Outcome(reached, {"workload": "floor", **setup, "reached": ratio, **speeds, "stages": rows})


def reached_by(name: str, measured: Sequence[Measured]) -> dict[Target, record.Spread]:
    """What a stage's repetitions say of its targets, if it has any."""
    reached = {}
    if name in FLOORS:
        reached[FLOORS[name]] = over(measured, "floor_s")
    if name in STOCKS:
        reached[STOCKS[name]] = over(measured, "stock_s")
    return reached


def over(measured: Sequence[Measured], what: str) -> record.Spread:
    """The engine's time over another, repetition by repetition."""
    return record.ratios([one.engine_s for one in measured], [getattr(one, what) for one in measured])


def summary(
    probe: Probe, name: str, measured: Sequence[Measured], bandwidth: float, rate: float
) -> dict[str, Any]:
    """A stage's part of the row. machine_s: at the speeds of the machine, whichever lasts longer."""
    stage = probe.stages[name]
    counted = stage.work
    machine_s = max(counted.bytes / bandwidth, counted.flops / rate)
    forms = {"x".join(map(str, shape)): form for shape, form in stage.chain.forms.items()}
    return {
        "flops": counted.flops,
        "bytes": counted.bytes,
        "engine_s": record.Spread.of([one.engine_s for one in measured]),
        "floor_s": record.Spread.of([one.floor_s for one in measured]),
        "over_floor": over(measured, "floor_s"),
        "over_machine": record.Spread.of([one.engine_s / machine_s for one in measured]),
        "forms": forms,
    }
