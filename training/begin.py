"""Train a model further: a run that begins with the weights of a model directory.

    python -m training.begin MODEL --state STATE
    python -m training all OUT --state STATE

The LoRA becomes part of the language model, at the scale that instructions get on average; a new LoRA and a
new prompt-aware adapter take their places. What `copy` teaches counts as learnt; `align` comes again, since
`language` moves the token embeddings that it aligns to.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from model.checkpoint import empty_model, fill
from model.checkpoint_format import TOKENIZER_FILE, CheckpointError, expected_tensors, open_tensors
from model.config import SpeechLLMConfig
from model.speech_llm import SpeechLLM
from model.tokenizer import Tokenizer
from training.assemble import START
from training.loop import write
from training.recipe import RECIPES, Recipe, State
from training.scales import measure

INSTRUCTIONS = 8
"""Of each task, to average the scale over."""


def begin(directory: Path, recipe: Recipe, state: State) -> None:
    """Write the first checkpoints of a run.

    Raises CheckpointError for a model directory that cannot be read or has other sizes than the recipe,
    FileExistsError if the run has begun.
    """
    if state.tokenizer.exists():
        raise FileExistsError(f"{state.root}: a run has begun here; --state names an empty folder")
    config = SpeechLLMConfig.load(directory)
    if expected_tensors(config) != expected_tensors(recipe.model_config()):
        raise CheckpointError(f"{directory}: its sizes are not those of the recipe")
    state.root.mkdir(parents=True, exist_ok=True)
    model = empty_model(config, torch.device("cpu"), torch.float32)
    fill(model, open_tensors(directory))
    model.llama.merge(mean_scale(model, Tokenizer(directory / TOKENIZER_FILE)))
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    kept = {name: weight for name, weight in weights.items() if not name.startswith("prompt_adapter.")}
    write(state, START, 0, kept, {})
    write(state, "copy", recipe.copy.steps, {}, {})
    shutil.copyfile(directory / TOKENIZER_FILE, state.tokenizer)


def mean_scale(model: SpeechLLM, tokenizer: Tokenizer) -> Tensor:
    """[D] over the instructions of all tasks."""
    measured = measure(model, tokenizer, INSTRUCTIONS, seed=1)
    return torch.cat([row.scales for row in measured]).mean(dim=0)


def main(
    model: Annotated[Path, typer.Argument(help="A model directory of the recipe's sizes.")],
    state: Annotated[Path, typer.Option(help="Where the run will be kept.")] = Path("training/state"),
    recipe: Annotated[str, typer.Option(help=f"Budget: {', '.join(RECIPES)}.")] = "cpu",
) -> None:
    """Begin a training run with the weights of MODEL."""
    begin(model, RECIPES[recipe](), State(state))


if __name__ == "__main__":
    typer.run(main)
