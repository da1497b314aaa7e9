"""`python -m benchmarks.gpu` at a size and on a device at which no figure means anything."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.command import PARTS, measure
from benchmarks.gpu.decode import floor_of
from benchmarks.gpu.machine import Rates
from benchmarks.gpu.targets import judge
from benchmarks.gpu.world import World

CPU = torch.device("cpu")


def test_every_part_runs_and_is_written_down(tmp_path: Path) -> None:
    output = tmp_path / "gpu.json"
    report = measure(World(CPU, torch.float32, "tiny", 4), list(PARTS), 600.0, output)
    assert report["failed"] == {}
    assert report["unmeasured"] == []
    assert json.loads(output.read_text(encoding="utf-8")) == report
    assert "decode, batch 1" in output.with_suffix(".txt").read_text(encoding="utf-8")
    assert report["parts"]["decode"]["batch_4"]["plain_ms"] > 0
    assert report["parts"]["encoders"]["2s_x2"]["audio_s_per_s"] > 0
    assert report["parts"]["throughput"]["4_again"]["tokens_per_s"] > 0
    assert {target["verdict"] for target in report["targets"]} == {"unmeasured"}


def test_what_the_time_does_not_suffice_for_is_named(tmp_path: Path) -> None:
    report = measure(World(CPU, torch.float32, "tiny", 4), ["decode"], 0.0, tmp_path / "gpu.json")
    assert report["unmeasured"] == ["decode"]
    assert report["parts"] == {}


def test_targets_are_compared_in_their_own_direction() -> None:
    parts = {
        "decode": {"batch_1": {"over_weights": 1.31}, "batch_64": {"share_of_floor": 0.6}},
        "first_token": {"median_ms": 39.0},
    }
    verdicts = [target["verdict"] for target in judge(parts)]
    assert verdicts == ["missed", "met", "met", "unmeasured", "unmeasured"]


def test_the_floor_counts_weights_once_and_keys_and_values_of_every_row() -> None:
    world = World(CPU, torch.float32, "tiny", 4)
    llama = world.config.llama
    rank = world.config.lora.r
    size, wide, layers = llama.hidden_size, llama.intermediate_size, llama.num_hidden_layers
    layer = 4 * size * size + 3 * size * wide + 4 * 2 * size * rank + 2 * size
    weights = layers * layer + size + llama.vocab_size * size
    floor = floor_of(world, 4, 32)
    assert floor.bytes == 4 * (weights + 4 * 32 * 2 * layers * size)
    assert floor.flops == pytest.approx(2 * 4 * weights)
    assert floor.seconds(Rates(1e9, 1e15)) == pytest.approx(floor.bytes / 1e9)
