"""`python -m benchmarks.peers` for real, at sizes at which no figure means anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.concurrency import endless_model
from benchmarks.sizes import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SIZES = {"clip-seconds": 1, "answer-tokens": 6, "num-questions": 4, "per-clip": 2, "sample": 2}
REPETITIONS = 2
COMPARED = {"script": 4, "litserve": 8, "batches, as they come": 8}
"""Answers that both sides gave: two repetitions of the sample, or of all questions."""
TARGETS = {"requests": 6, "reuse": 3, "transport": 2}


def check_requests(row: dict[str, Any]) -> None:
    """Each peer answers as ours does, and the rates are those of all rounds."""
    assert row["agreement"] == {name: {"compared": n, "equal": n} for name, n in COMPARED.items()}
    assert {spread["count"] for spread in row["requests_per_s"].values()} == {REPETITIONS}
    assert len(row["requests_per_s"]) == 6
    ours = row["requests_per_s"]["wavllm serve"]
    assert ours["low"] <= row["arrivals_per_s"] <= ours["high"]


def check_reuse(row: dict[str, Any]) -> None:
    """Nothing is computed again but the end of the prompt."""
    ratio, passes, blocks = row["reached"].values()
    assert ratio["low"] > 0
    assert passes["high"] == 0
    assert 0 < blocks["high"] <= 1


def check_transport(row: dict[str, Any]) -> None:
    """The whole is more than the reading of the file."""
    for added, decode in zip(row["reached"].values(), row["of_it_decode_ms"].values(), strict=True):
        assert decode["low"] > 0
        assert decode["median"] < added["median"]


CHECKS = {"requests": check_requests, "reuse": check_reuse, "transport": check_transport}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_model(tmp_path_factory.mktemp("peers") / "model")


def run(workload: str, model: Path, folder: Path) -> tuple[dict[str, Any], str]:
    """Its row, and what it printed; whether targets are met at this size is of no interest."""
    flags = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
    flags += ["--model", str(model), "--output", str(folder), "--repetitions", str(REPETITIONS)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", workload, *flags],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode in (0, 1), done.stderr
    (line,) = (folder / "peers.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(line), done.stdout


@pytest.mark.parametrize("workload", TARGETS)
def test_a_workload_from_command_to_row(tmp_path: Path, model: Path, workload: str) -> None:
    row, printed = run(workload, model, tmp_path)
    assert row["workload"] == workload
    assert row["model"] == "wavllm-tiny-random"
    assert len(row["reached"]) == TARGETS[workload] == printed.count("met: ") + printed.count("MISSED: ")
    for spread in row["reached"].values():
        assert spread["count"] == REPETITIONS
        assert spread["low"] <= spread["median"] <= spread["high"]
    CHECKS[workload](row)
