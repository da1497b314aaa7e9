"""The training command: `python -m training all`, or one stage after the other.

    python -m training speech      scripts, spoken                       (any number of processes)
    python -m training whisper     frozen Whisper features of them
    python -m training copy        stage 0: the small LLaMA, to write down what is heard
    python -m training language    stage 0: the same, all that text can teach
    python -m training acoustic    stage 0: the small WavLM, then its features
    python -m training align       stage 1: adapters, by what is said
    python -m training single      stage 1: adapters and LoRA, single tasks, scale 1
    python -m training joint       stage 2: many instructions at once, the prompt-aware adapter
    python -m training export DIR  the model directory

What is done is not done again; what was interrupted goes on. On a GPU `all` runs beside each other what does
not wait for each other: clips are spoken while the language model learns.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import typer

from training import stages
from training.parallel import STEPS, run_together
from training.plot import plot
from training.recipe import RECIPES, State


def main(
    step: Annotated[str, typer.Argument(help=f"all, export, or one of {', '.join(STEPS)}.")],
    output: Annotated[Path | None, typer.Argument(help="Directory for the model (all, export).")] = None,
    recipe: Annotated[str, typer.Option(help=f"Budget: {', '.join(RECIPES)}.")] = "cpu",
    state: Annotated[Path, typer.Option(help="Where everything made on the way is kept.")] = Path(
        "training/state"
    ),
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    threads: Annotated[
        int, typer.Option(help="Threads of torch, processes that speak; 0: as many as fit.")
    ] = 0,
    seconds: Annotated[
        float, typer.Option(help="For all stages of training together; 0: all of the recipe's steps.")
    ] = 0.0,
    before_joint: Annotated[
        bool, typer.Option("--before-joint", help="With export: the model as stage 1 left it.")
    ] = False,
) -> None:
    """Train the embedded default."""
    _check(recipe, step, output, before_joint)
    if threads:
        torch.set_num_threads(threads)
    if device != "cpu":
        # Ten bits of mantissa are enough to learn with. Serving never does this.
        torch.set_float32_matmul_precision("high")
    workers = threads or torch.get_num_threads()
    run = stages.Run(RECIPES[recipe](), State(state), torch.device(device), workers, seconds or None)
    if step == "all" and device != "cpu":
        options = _options(recipe, state, device, threads, seconds)
        run_together(lambda name: [sys.executable, "-m", "training", name, *options])
    else:
        for name in STEPS if step == "all" else (step,):
            if name != "export":
                getattr(stages, name)(run)
    if output is not None:
        stages.export(run, output, before_joint=before_joint)
        plot(run.state)


def _check(recipe: str, step: str, output: Path | None, before_joint: bool) -> None:
    """Raise BadParameter for what does not go together."""
    if recipe not in RECIPES:
        raise typer.BadParameter(f"{recipe!r} is none of {', '.join(RECIPES)}", param_hint="--recipe")
    if step not in (*STEPS, "all", "export"):
        raise typer.BadParameter(f"{step!r} is none of all, export, {', '.join(STEPS)}", param_hint="STEP")
    if (step in ("all", "export")) == (output is None):
        raise typer.BadParameter("goes with all and export, and only with them", param_hint="OUTPUT")
    if before_joint and step != "export":
        raise typer.BadParameter("goes with export, and only with it", param_hint="--before-joint")


def _options(recipe: str, state: Path, device: str, threads: int, seconds: float) -> list[str]:
    options = {"recipe": recipe, "state": state, "device": device, "threads": threads, "seconds": seconds}
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


if __name__ == "__main__":
    typer.run(main)
