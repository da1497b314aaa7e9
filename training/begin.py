"""Train a model further: a run that begins with the weights of a model directory.

    python -m training.begin MODEL --state STATE
    python -m training all OUT --state STATE

The LoRA becomes part of the language model, at the scale that instructions get on average; a new LoRA and a
new prompt-aware adapter take their places. What `copy` and `align` teach counts as learnt.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from model.checkpoint import tensor_places
from model.checkpoint_format import TOKENIZER_FILE, CheckpointError, expected_tensors, open_tensors
from model.config import SpeechLLMConfig
from model.speech_llm import SpeechLLM
from model.tokenizer import Tokenizer
from training.assemble import START
from training.loop import write
from training.network import new_model
from training.recipe import RECIPES, Recipe, State
from training.scales import measure

LEARNT = ("copy", "align")
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
    model = trained(directory, config, recipe.seed)
    merge_lora(model, mean_scale(model, Tokenizer(directory / TOKENIZER_FILE)))
    fresh = new_model(config, recipe.seed)
    weights = dict(model.named_parameters())
    kept = {name: weights[name].detach() for name in dict(fresh.named_parameters()) if is_kept(name)}
    write(state, START, 0, kept, {})
    for stage in LEARNT:
        write(state, stage, getattr(recipe, stage).steps, {}, {})
    shutil.copyfile(directory / TOKENIZER_FILE, state.tokenizer)


def trained(directory: Path, config: SpeechLLMConfig, seed: int) -> SpeechLLM:
    """The network with a directory's weights in float32, its LoRA and weight norm as they are."""
    model = new_model(config, seed)
    tensors, places = open_tensors(directory), tensor_places(model)
    for name, shape in expected_tensors(config).items():
        places[name].copy_(tensors.get(name).reshape(shape))
    return model


def mean_scale(model: SpeechLLM, tokenizer: Tokenizer) -> Tensor:
    """[D] over the instructions of all tasks."""
    measured = measure(model, tokenizer, INSTRUCTIONS, seed=1)
    return torch.cat([row.scales for row in measured]).mean(dim=0)


def merge_lora(model: SpeechLLM, scale: Tensor) -> None:
    """Fold every LoRA into its weight at one scale [D], in place."""
    for block in model.llama.blocks:
        for linear in (block.attention.qkv, block.attention.o):
            linear.merge(scale)


def is_kept(name: str) -> bool:
    """Whether a parameter goes on with the directory's weights."""
    return "lora_" not in name and not name.startswith("prompt_adapter.")


def main(
    model: Annotated[Path, typer.Argument(help="A model directory of the recipe's sizes.")],
    state: Annotated[Path, typer.Option(help="Where the run will be kept.")] = Path("training/state"),
    recipe: Annotated[str, typer.Option(help=f"Budget: {', '.join(RECIPES)}.")] = "cpu",
) -> None:
    """Begin a training run with the weights of MODEL."""
    begin(model, RECIPES[recipe](), State(state))


if __name__ == "__main__":
    typer.run(main)
