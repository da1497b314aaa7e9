"""How strongly instructions of each task let the LoRA act: a model's prompt-aware adapter, measured.

    python -m training.scales MODEL OUT                 OUT/scales.csv, OUT/scales.png
    python -m training.scales MODEL OUT --fixed DIR     also a copy of MODEL with scale 1 for all instructions

The copy is what `wavllm eval` takes to see whether the scale matters (paper, section 4.4: the adapter against
a LoRA of one strength).
"""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import typer
from torch import Tensor

from model.checkpoint import load_model
from model.checkpoint_format import TOKENIZER_FILE, ShardWriter, expected_tensors, open_tensors
from model.config import SpeechLLMConfig
from model.prompt import adapter_ids
from model.speech_llm import SpeechLLM
from model.tokenizer import Tokenizer
from training.batch import Ragged
from training.network import prompt_scales
from training.recipe import KINDS
from training.scripts import draw_script
from training.tasks import TASKS, make_example, tasks_for

INSTRUCTIONS = 64
"""Of each task, in phrasings that were never trained on."""
BATCH = 16


@dataclass(frozen=True, slots=True)
class TaskScales:
    """Scales [INSTRUCTIONS, D] of one task's instructions."""

    task: str
    scales: Tensor


def instructions(task: str, count: int, seed: int) -> list[str]:
    """`count` instructions of a task, held-out phrasings."""
    rng = random.Random(f"{seed}/{task}")
    kinds = [kind for kind in KINDS if kind != "ordinary"]
    drawn: list[str] = []
    while len(drawn) < count:
        script = draw_script(rng.choice(kinds), rng, "test")
        if task in tasks_for(script):
            drawn.append(make_example(task, script, rng, "held_out").instruction)
    return drawn


@torch.no_grad()
def measure(model: SpeechLLM, tokenizer: Tokenizer, count: int, seed: int) -> list[TaskScales]:
    """The scales of every task's instructions."""
    measured = []
    for task in TASKS:
        ids = [torch.tensor(adapter_ids(tokenizer, text)) for text in instructions(task, count, seed)]
        batches = [prompt_scales(model, Ragged.of(ids[i : i + BATCH])) for i in range(0, count, BATCH)]
        measured.append(TaskScales(task, torch.cat(batches)))
    return measured


def write_csv(measured: list[TaskScales], path: Path) -> None:
    """One row a task: mean and spread of the mean scale, and how far apart channels and instructions are."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["task", "mean", "std_between_instructions", "std_between_channels", "min", "max"])
        for row in measured:
            means, channels = row.scales.mean(dim=1), row.scales.mean(dim=0)
            figures = (means.mean(), means.std(), channels.std(), row.scales.min(), row.scales.max())
            writer.writerow([row.task, *(f"{figure.item():.4f}" for figure in figures)])


def draw(measured: list[TaskScales], path: Path) -> None:
    """Above: each task's distribution over instructions and channels. Below: each channel's mean by task."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (above, below) = plt.subplots(2, 1, figsize=(9, 7), height_ratios=(3, 2))
    names = [row.task for row in measured]
    above.violinplot([row.scales.flatten().numpy() for row in measured], showmedians=True)
    above.set_xticks(range(1, len(names) + 1), names, fontsize="small")
    above.axhline(1, color="grey", linewidth=0.8)
    above.set(ylabel="LoRA scale", title="Scale by task, all channels and instructions")
    channels = torch.stack([row.scales.mean(dim=0) for row in measured])
    order = channels.std(dim=0).argsort(descending=True)
    image = below.imshow(channels[:, order].numpy(), aspect="auto", cmap="viridis")
    below.set_yticks(range(len(names)), names)
    below.set(xlabel="channel, those that differ most by task first", title="Mean scale of each channel")
    figure.colorbar(image, ax=below)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write_fixed(source: Path, target: Path) -> None:
    """A copy of a model directory with scale 1. Raises CheckpointError if `target` exists."""
    config, tensors = SpeechLLMConfig.load(source), open_tensors(source)
    fixed = {"prompt_adapter.fc2.weight": torch.zeros_like, "prompt_adapter.fc2.bias": torch.ones_like}
    with ShardWriter(target, config, tokenizer=source / TOKENIZER_FILE) as writer:
        for name, shape in expected_tensors(config).items():
            writer.add(name, fixed.get(name, torch.clone)(tensors.get(name).reshape(shape)))


def main(
    model: Annotated[Path, typer.Argument(help="A model directory.")],
    output: Annotated[Path, typer.Argument(help="Folder for scales.csv and scales.png.")],
    fixed: Annotated[Path | None, typer.Option(help="Where to write the copy with scale 1.")] = None,
) -> None:
    """Measure the prompt-aware adapter of MODEL."""
    loaded, tokenizer = load_model(model, torch.device("cpu"), torch.float32)
    output.mkdir(parents=True, exist_ok=True)
    measured = measure(loaded, tokenizer, INSTRUCTIONS, seed=1)
    write_csv(measured, output / "scales.csv")
    draw(measured, output / "scales.png")
    if fixed is not None:
        write_fixed(model, fixed)


if __name__ == "__main__":
    typer.run(main)
