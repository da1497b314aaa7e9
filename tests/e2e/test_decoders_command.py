"""`python -m benchmarks.decoders` for real, with every peer, at sizes at which no figure means anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.concurrency import endless_model
from benchmarks.decoders.peers import PEERS
from benchmarks.decoders.prompts import Shape
from benchmarks.decoders.workloads import against
from benchmarks.sizes import ROOT
from server.os_process import COMPUTING

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
BATCHES = (1, 8)
NUM_TARGETS = 6
REPETITIONS = 2
FLAGS = ["--prompt-tokens", "80", "--answer-tokens", "6", "--batches", *map(str, BATCHES)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_model(tmp_path_factory.mktemp("decoders") / "model")


def test_all_peers_from_command_to_row(tmp_path: Path, model: Path) -> None:
    flags = [*FLAGS, "--model", str(model), "--output", str(tmp_path), "--repetitions", str(REPETITIONS)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.decoders", "text", *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode in (0, 1), done.stderr
    (line,) = (tmp_path / "decoders.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(line)
    assert row["workload"] == "text"
    printed = done.stdout.count("met: ") + done.stdout.count("MISSED: ")
    assert len(row["reached"]) == NUM_TARGETS == printed
    assert all(spread["count"] == REPETITIONS and spread["low"] > 0 for spread in row["reached"].values())
    assert row["peers"].keys() == PEERS.keys()
    assert row["agreement"].keys() == {f"{name}, batch {batch}" for name in PEERS for batch in BATCHES}
    for key, counts in row["agreement"].items():
        assert counts["compared"] == REPETITIONS * int(key.rpartition(" ")[2])
        assert counts["tokens_agreed"] >= 0.8 * counts["tokens"]


def test_what_has_no_target_is_left_out_where_targets_alone_are_asked_for(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in COMPUTING.items():
        monkeypatch.setenv(name, value)
    shape = Shape(prompt_tokens=80, answer_tokens=6, batches=(2, 8))
    outcome = against(model, 1, shape, ("transformers",), targets_only=True)
    assert list(outcome.reached) == [PEERS["transformers"].targets[8]]
    measured = {"engine, batch 2", "engine, batch 8", "transformers, batch 8"}
    assert outcome.row["tokens_per_s"].keys() == measured
