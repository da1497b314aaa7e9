"""`wavllm bench` for real: both routes of a real server, its own books beside the generator's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from e2e_client import CHAT, GOLDEN, HTTP, SHORT, check_idle, golden_form, growth, metrics_of
from server_process import ServerProcess

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(GOLDEN.parent.parent),
    "COLUMNS": "200",
}
TIMEOUT_S = 100
CLIPS = ("--audio", str(GOLDEN / "audio" / "short.wav"), "--audio", str(GOLDEN / "audio" / "kitchen.wav"))


def bench(folder: Path, server: ServerProcess, *flags: str, code: int = 0) -> tuple[dict[str, Any], str]:
    """Run to the end; its results, and what it printed."""
    fixed = ("--server", server.url, "--output", "out", "--max-tokens", "48", "--warmup", "0")
    done = subprocess.run(
        [sys.executable, "-m", "server.cli", "bench", *fixed, *flags],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=folder,
        env=ENVIRONMENT,
    )
    assert done.returncode == code, done.stdout + done.stderr
    results = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
    return results, done.stdout + done.stderr


@pytest.mark.parametrize("api", ["speech", "openai"])
def test_a_sweep_of_a_real_server(tmp_path: Path, server: ServerProcess, api: str) -> None:
    before = metrics_of(server)
    prompts = ("--prompt", "What was said?", "--prompt", "Who speaks?")
    flags = (*CLIPS, *prompts, "--request-rate", "8,inf", "--num-requests", "12", "--goodput", "e2e:60000")
    results, printed = bench(tmp_path, server, "--api", api, "--api-key", "sesame", *flags)
    assert [row["requests"]["ok"] for row in results["rows"]] == [12, 12]
    for row in results["rows"]:
        assert row["agreement"]["equal"] == row["agreement"]["compared"] == 12
        assert row["agreement"]["by"] == ("token_ids" if api == "speech" else "text")
        assert 0 < row["ttft_ms"]["p50"] <= row["e2e_ms"]["p50"]
        assert row["itl_ms"]["count"] > 0
        assert row["goodput"]["share"] == 1
    asked = len(results["questions"])
    assert asked == 4
    tokens = sum(row["throughput"]["output_tokens"] for row in results["rows"])
    tokens += sum(question["alone"]["tokens"] for question in results["questions"])
    counted = growth(before, metrics_of(server))
    assert counted["requests_accepted_total"] == 24 + asked
    assert counted["generation_tokens_total"] == tokens
    assert results["server"]["model"]["max_audio_seconds"] > 0
    assert "sesame" not in json.dumps(results)
    assert "12/12" in printed
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"results.json", "table.md", "latency.png"}


def test_clients_that_leave_free_their_places(tmp_path: Path, server: ServerProcess) -> None:
    before = metrics_of(server)
    results, _ = bench(
        tmp_path, server, *CLIPS, "--cancel-share", "1", "--request-rate", "inf", "--num-requests=8"
    )
    (row,) = results["rows"]
    assert row["requests"]["cancelled"] == row["cancellations"]["count"] == 8
    check_idle(server, within_s=5)
    counted = growth(before, metrics_of(server))
    assert counted["requests_accepted_total"] == 8 + len(results["questions"])


def test_refusals_of_a_real_server(tmp_path: Path, golden_model: Path) -> None:
    with ServerProcess(golden_model, "--max-queued-requests", "1", "--max-batch-size", "1") as server:
        flags = (*CLIPS, "--request-rate", "inf", "--num-requests", "30")
        results, printed = bench(tmp_path, server, *flags)
        assert HTTP.post(server.url + CHAT, **golden_form(SHORT)).status_code == 200
    (row,) = results["rows"]
    assert row["requests"]["sent"] == 30 == row["requests"]["ok"] + row["requests"]["rejected"]
    assert row["requests"]["rejected"] == row["rejections"]["503"]["count"] > 0
    assert row["agreement"]["equal"] == row["requests"]["ok"] > 0
    assert "rejected" in printed


def test_the_embedded_examples_are_the_default(tmp_path: Path, server: ServerProcess) -> None:
    results, printed = bench(
        tmp_path, server, "--request-rate", "inf", "--num-requests", "2", "--reference", "none"
    )
    assert results["setup"]["questions_from"] == "examples"
    assert "asking about dialogue.wav, kitchen.wav" in printed
    assert results["rows"][0]["requests"]["ok"] == 2
