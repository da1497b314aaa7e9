"""`python -m benchmarks.decoders` for real, with every peer, at sizes at which no figure means anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.concurrency import endless_model
from benchmarks.sizes import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
TARGETS = {"transformers": 2, "llamacpp": 2, "vllm": 2}
DECODERS = {
    "transformers": {"transformers"},
    "llamacpp": {"llama.cpp F32", "llama.cpp F16"},
    "vllm": {"vllm", "vllm serve"},
}
REPETITIONS = 2
FLAGS = ["--prompt-tokens", "80", "--answer-tokens", "6", "--batches", "1", "8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_model(tmp_path_factory.mktemp("decoders") / "model")


@pytest.mark.parametrize("workload", TARGETS)
def test_a_peer_from_command_to_row(tmp_path: Path, model: Path, workload: str) -> None:
    flags = [*FLAGS, "--model", str(model), "--output", str(tmp_path), "--repetitions", str(REPETITIONS)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.decoders", workload, *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode in (0, 1), done.stderr
    (line,) = (tmp_path / "decoders.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(line)
    assert row["workload"] == workload
    printed = done.stdout.count("met: ") + done.stdout.count("MISSED: ")
    assert len(row["reached"]) == TARGETS[workload] == printed
    assert all(spread["count"] == REPETITIONS and spread["low"] > 0 for spread in row["reached"].values())
    keys = {f"{name}, batch {batch}" for name in DECODERS[workload] for batch in (1, 8)}
    assert row["agreement"].keys() == keys
    for key, counts in row["agreement"].items():
        assert counts["compared"] == REPETITIONS * int(key.rpartition(" ")[2])
        assert counts["tokens_agreed"] >= 0.8 * counts["tokens"]
