"""The measurement of the prompt-aware adapter: what it reports, and the copy with scale 1."""

from __future__ import annotations

import csv
from pathlib import Path

import torch

from model.checkpoint import load_model
from model.speech_llm import SpeechLLM
from model.tokenizer import Tokenizer
from training.batch import Ragged
from training.network import prompt_scales
from training.scales import draw, instructions, measure, write_csv, write_fixed
from training.tasks import TASKS

CPU = torch.device("cpu")


def test_scales_are_those_of_serving(exact: SpeechLLM, tokenizer: Tokenizer, tmp_path: Path) -> None:
    measured = measure(exact, tokenizer, 3, seed=1)
    assert tuple(row.task for row in measured) == TASKS
    said = instructions("asr", 3, 1)[1]
    alone = exact.prompt_scale(tokenizer.encode(f'"{said}"'))
    assert torch.allclose(measured[0].scales[1], alone, atol=1e-9)
    write_csv(measured, tmp_path / "scales.csv")
    rows = list(csv.DictReader((tmp_path / "scales.csv").read_text().splitlines()))
    assert float(rows[0]["mean"]) == round(measured[0].scales.mean().item(), 4)
    draw(measured, tmp_path / "scales.png")
    assert (tmp_path / "scales.png").read_bytes().startswith(b"\x89PNG")


def test_instructions_of_a_seed_are_the_same_ones() -> None:
    assert instructions("sqa", 4, 1) == instructions("sqa", 4, 1) != instructions("sqa", 4, 2)


def test_the_fixed_copy_differs_in_the_scale_alone(directory: Path, tmp_path: Path) -> None:
    write_fixed(directory, tmp_path / "fixed")
    before, _ = load_model(directory, CPU, torch.float64)
    after, _ = load_model(tmp_path / "fixed", CPU, torch.float64)
    ones = torch.ones(1, after.config.llama.hidden_size).double()
    assert torch.equal(prompt_scales(after, Ragged.of([torch.tensor([5, 6, 7])])), ones)
    weights = zip(before.named_parameters(), after.parameters(), strict=True)
    changed = [name for (name, old), new in weights if not old.equal(new)]
    assert changed == ["prompt_adapter.fc2.weight", "prompt_adapter.fc2.bias"]
