"""One stage's optimisation: schedule, clipping, curve, checkpoints, exact resume."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from training.batch import move
from training.corpus import write_whole
from training.progress import track
from training.recipe import StageBudget, State

WARMUP_SHARE = 0.04
FIRST_SHARE = 0.001
"""Of a stage: the first steps learn as if it were over already."""
FINAL_RATE = 0.03
"""Of the peak learning rate, at the end of a cosine."""
CLIP = 1.0
WEIGHT_DECAY = 0.02
SAVE_SECONDS = 120.0
SMOOTH = 0.95
LOG_STEPS = 10


class Stage(Protocol):
    """What a stage trains and how it fails."""

    name: str
    budget: StageBudget

    @property
    def trained(self) -> nn.Module:
        """Its parameters that require a gradient are optimised and saved."""
        ...

    @property
    def rates(self) -> Mapping[str, float]:
        """Factors on the learning rate, by a part of the parameter's name; the last one that fits counts."""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def batch(self, step: int) -> Any:
        """What one step is about, a dataclass on the CPU, made in any process: `step` alone decides it."""
        ...

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Named figures of one batch, moved to `device`; "loss" is the one to descend."""
        ...


@dataclass(frozen=True, slots=True)
class Batches(TorchDataset[Any]):
    """A stage's batches, by step, for torch's DataLoader."""

    stage: Stage

    def __getitem__(self, step: int) -> Any:
        """The batch of a step."""
        return self.stage.batch(step)


def loaded(stage: Stage, first: int, loaders: int) -> Iterator[Any]:
    """The batches from step `first` on, made ahead by so many processes; 0: here, when asked for."""
    steps = range(first, stage.budget.steps)
    # With the other strategy every tensor under way takes a file handle.
    torch.multiprocessing.set_sharing_strategy("file_system")  # type: ignore[no-untyped-call]
    return iter(
        DataLoader(
            Batches(stage),
            batch_size=None,
            sampler=steps,
            num_workers=loaders,
            multiprocessing_context="fork" if loaders else None,
        )
    )


def rate(progress: float, budget: StageBudget) -> float:
    """Learning rate at a share of the stage, 0 to 1: linear warm-up, then a cosine."""
    if progress < WARMUP_SHARE:
        return budget.learning_rate * max(progress, FIRST_SHARE) / WARMUP_SHARE
    rest = (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)
    return budget.learning_rate * (FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * rest)) / 2)


@dataclass
class Clock:
    """How far a stage has come: by its steps, or by its seconds where these end first.

    seconds: None for no limit. spent: before this run.
    """

    steps: int
    seconds: float | None
    spent: float = 0.0

    def __post_init__(self) -> None:
        self._begin: float | None = None

    @property
    def elapsed(self) -> float:
        """Seconds of training in all runs; the first step of each starts the clock."""
        return self.spent + (0.0 if self._begin is None else time.monotonic() - self._begin)

    def start(self) -> None:
        """Of the first step."""
        self._begin = time.monotonic() if self._begin is None else self._begin

    def progress(self, step: int) -> float:
        """Share of the stage that is over before `step`, 0 to 1."""
        by_time = self.elapsed / self.seconds if self.seconds else 0.0
        return min(1.0, max(step / self.steps, by_time))


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def make_optimizer(stage: Stage) -> torch.optim.AdamW:
    """AdamW; norms, biases and other vectors do not decay. One group for each rate and decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable(stage.trained).items():
        factor = ([f for part, f in stage.rates.items() if part in name] or [1.0])[-1]
        decay = WEIGHT_DECAY if parameter.ndim > 1 else 0.0
        groups.setdefault((factor, decay), []).append(parameter)
    made = [{"params": group, "weight_decay": decay, "factor": f} for (f, decay), group in groups.items()]
    return torch.optim.AdamW(made, lr=1.0, betas=(0.9, 0.98), fused=True)


def train(stage: Stage, state: State, loaders: int = 0, seconds: float | None = None) -> None:
    """Run a stage to its end, from its checkpoint if there is one.

    loaders: processes that make its batches. seconds: it ends after these, if its steps take longer.
    Raises FloatingPointError once a loss is not finite, before anything is saved.
    """
    optimizer = make_optimizer(stage)
    step, spent = restore(stage, optimizer, state)
    clock = Clock(stage.budget.steps, seconds, spent)
    if clock.progress(step) >= 1:
        return
    stage.trained.train()
    smooth: dict[str, Tensor] = {}
    saved, shown_step = time.monotonic(), step
    with track(f"Stage {stage.name}", stage.budget.steps, step) as advance:
        for batch in loaded(stage, step, loaders):
            clock.start()
            for key, value in take_step(stage, optimizer, step, batch, clock.progress(step)).items():
                smooth[key] = SMOOTH * smooth.get(key, value) + (1 - SMOOTH) * value
            step += 1
            is_over = clock.progress(step) >= 1
            # Figures are fetched now and then: each time a GPU has to come to rest.
            if is_over or step % LOG_STEPS == 0 or step == 1:
                shown = read_figures(stage, step, smooth)
                log(state.curve(stage.name), step, shown)
                note = " ".join(f"{key} {value:.3f}" for key, value in shown.items())
                advance(step - shown_step, note)
                shown_step = step
            if is_over or time.monotonic() - saved > SAVE_SECONDS:
                read_figures(stage, step, smooth)
                save(stage, optimizer, step, state, clock.elapsed)
                saved = time.monotonic()
            if is_over:
                break
    stage.trained.eval()


def take_step(
    stage: Stage, optimizer: torch.optim.AdamW, step: int, batch: Any, progress: float
) -> dict[str, Tensor]:
    """One batch, one update at a share of the stage. Returns the figures."""
    for group in optimizer.param_groups:
        group["lr"] = rate(progress, stage.budget) * group["factor"]
    torch.manual_seed(step)
    figures = stage.losses(move(batch, stage.device))
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(figures["loss"])
    nn.utils.clip_grad_norm_(trainable(stage.trained).values(), CLIP)
    optimizer.step()
    return {key: value.detach() for key, value in figures.items()}


def read_figures(stage: Stage, step: int, figures: Mapping[str, Tensor]) -> dict[str, float]:
    """Numbers of the smoothed figures, in which one NaN stays for ever. Raises FloatingPointError for it."""
    read = {key: float(value) for key, value in figures.items()}
    if not math.isfinite(read["loss"]):
        raise FloatingPointError(f"stage {stage.name}, by step {step}: the loss is not finite")
    return read


def save(stage: Stage, optimizer: torch.optim.AdamW, step: int, state: State, seconds: float = 0.0) -> None:
    """Write weights, optimiser, step and seconds spent; whole or not at all."""
    weights = {name: p.detach() for name, p in trainable(stage.trained).items()}
    write(state, stage.name, step, weights, optimizer.state_dict(), seconds)


def write(
    state: State,
    stage: str,
    step: int,
    weights: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    seconds: float = 0.0,
) -> None:
    """Write a stage's checkpoint. optimizer: empty where none goes on."""
    kept = {"step": step, "seconds": seconds, "weights": dict(weights), "optimizer": dict(optimizer)}
    with write_whole(state.checkpoint(stage)) as path:
        torch.save(kept, path)


def read(state: State, stage: str) -> dict[str, Any]:
    """A stage's checkpoint. Raises FileNotFoundError that says which command makes it."""
    path = state.checkpoint(stage)
    if not path.exists():
        raise FileNotFoundError(f"{path}: missing; run `python -m training {stage}` first")
    checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return checkpoint


def restore(stage: Stage, optimizer: torch.optim.AdamW, state: State) -> tuple[int, float]:
    """Load a stage's checkpoint, if there is one; returns the step to go on from, and the seconds spent."""
    if not state.checkpoint(stage.name).exists():
        return 0, 0.0
    checkpoint = read(state, stage.name)
    put(stage.trained, checkpoint["weights"])
    if checkpoint["optimizer"]:
        optimizer.load_state_dict(checkpoint["optimizer"])
    return int(checkpoint["step"]), float(checkpoint["seconds"])


@torch.no_grad()
def put(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy weights into the parameters of the same names. Raises KeyError for one that is not there."""
    places = dict(module.named_parameters())
    for name, value in weights.items():
        places[name].copy_(value)


def log(path: Path, step: int, figures: Mapping[str, float]) -> None:
    """Add a row to a curve; rows of steps that a crash undid stay, the later ones count."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow(["step", *figures])
        writer.writerow([step, *(f"{value:.5f}" for value in figures.values())])
