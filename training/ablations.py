"""The paper's claims, tested: the same short stages 1 and 2, with one part of the method left out at a time.

    python -m training.ablations OUT --state STATE      OUT/<arm>, a model directory each

All arms start from STATE's features and from its checkpoints up to `align`. Their own training lies in
STATE/ablations/<arm>. Compare the directories with `wavllm eval`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer

from training import stages
from training.assemble import START
from training.recipe import Recipe, State

SHARED = ("speech", "whisper", "wavlm", "tokenizer.model")
STARTED_FROM = (START, "copy", "language", "acoustic", "align")


def arms(single_steps: int, joint_steps: int) -> dict[str, Recipe]:
    """Recipes by name; budgets are equal."""
    full = Recipe()
    full = replace(
        full,
        single=replace(full.single, steps=single_steps),
        joint=replace(full.joint, steps=joint_steps),
    )
    return {
        "full": full,
        "no-prompt-adapter": replace(full, use_prompt_adapter=False),
        "no-wavlm": replace(full, use_wavlm=False),
        "one-stage": replace(full, two_stages=False),
    }


def branch_off(state: State, arm: str) -> State:
    """A state of its own that shares what came before stage 1."""
    own = State(state.root / "ablations" / arm)
    links = {own.root / name: state.root / name for name in SHARED}
    links |= {own.checkpoint(stage): state.checkpoint(stage) for stage in STARTED_FROM}
    if arm == "no-prompt-adapter":  # which stage 1 has not met yet
        links[own.checkpoint("single")] = State(state.root / "ablations" / "full").checkpoint("single")
    for link, target in links.items():
        link.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not link.is_symlink():
            link.symlink_to(target.resolve())
    return own


def main(
    output: Annotated[Path, typer.Argument(help="Folder for one model directory per arm.")],
    state: Annotated[Path, typer.Option(help="A training run that has come to `align`.")] = Path(
        "training/state"
    ),
    only: Annotated[str, typer.Option(help="Train this arm alone.")] = "",
    single_steps: Annotated[int, typer.Option(help="Steps of stage 1.")] = 600,
    joint_steps: Annotated[int, typer.Option(help="Steps of stage 2.")] = 250,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    workers: Annotated[int, typer.Option(help="Processes that prepare batches for a GPU.")] = 2,
) -> None:
    """Train every arm; what is done is not done again."""
    for arm, recipe in arms(single_steps, joint_steps).items():
        if arm.startswith(only) and not (output / arm).exists():
            run = stages.Run(recipe, branch_off(State(state), arm), torch.device(device), workers)
            stages.single(run)
            stages.joint(run)
            stages.export(run, output / arm)


if __name__ == "__main__":
    typer.run(main)
