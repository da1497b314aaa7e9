"""`wavllm eval` for real: in process and over HTTP the same answers; killed, it goes on where it was."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from e2e_client import CASES, GOLDEN
from server_process import ServerProcess

from server.engine.fingerprint import fingerprint

HEADER = "id\taudio\tn_frames\tprompt\ttgt_text\twith_speech\ttask\n"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(GOLDEN.parent.parent)}
TIMEOUT_S = 100
NUM_ROWS = 60
"""Enough that a kill after five answers comes in time."""
TASKS = ("asr", "en2de", "SQQA", "sv")


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """The first golden questions (all but the long clips), then one whose question is in the audio alone."""
    rows = [(case["audio"], case["prompt"], task) for case, task in zip(CASES, TASKS, strict=False)]
    rows.append(("short.wav", "", "emo"))
    lines = [
        f"{n}\tthere/audio/{audio}\t1\t{prompt}\tsad\tTrue\t{task}"
        for n, (audio, prompt, task) in enumerate(rows)
    ]
    path = tmp_path / "golden.tsv"
    path.write_text(HEADER + "\n".join(lines), encoding="utf-8")
    return path


def command(manifest: Path, *flags: str) -> list[str]:
    fixed = ("--audio-root", str(GOLDEN), "--max-tokens", "48")
    return [sys.executable, "-m", "server.cli", "eval", str(manifest), *fixed, *flags]


def evaluate(manifest: Path, *flags: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run to the end; it must exit so."""
    done = subprocess.run(
        command(manifest, *flags),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        cwd=manifest.parent,
        env=ENVIRONMENT,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def answers(directory: Path) -> dict[str, str]:
    lines = (directory / "answers.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    records = [json.loads(line) for line in lines]
    return {record["id"]: record["answer"] for record in records if record["error"] is None}


def test_in_process_and_over_http_the_answers_are_the_same(
    manifest: Path, server: ServerProcess, golden_model: Path
) -> None:
    folder = manifest.parent
    evaluate(manifest, "--model", str(golden_model), "--output", "local")
    done = evaluate(manifest, "--server", server.url, "--concurrency", "3")
    remote = folder / "eval-results" / "golden"
    assert len(answers(remote)) == 5
    assert answers(remote) == answers(folder / "local")
    assert "| asr | 1 | wer |" in done.stdout
    reports = [json.loads((path / "report.json").read_text()) for path in (remote, folder / "local")]
    assert reports[0]["tasks"] == reports[1]["tasks"]
    assert reports[0]["settings"] != reports[1]["settings"]
    marks = (reports[0]["settings"]["fingerprint"], reports[1]["settings"]["model"])
    assert set(marks) == {fingerprint(golden_model)}
    assert set(reports[0]["tasks"]) == {"asr", "en2de", "SQQA", "sv", "emo"}
    names = {path.name for path in remote.iterdir()}
    assert names == {
        "answers.jsonl",
        "run.json",
        "report.json",
        "report.md",
        "confusion-sv.png",
        "confusion-emo.png",
    }


def test_limits_mismatches_and_failures(manifest: Path, server: ServerProcess) -> None:
    flags = ("--server", server.url, "--output", "out")
    evaluate(manifest, *flags, "--limit", "2")
    out = manifest.parent / "out"
    first = (out / "answers.jsonl").read_bytes()
    assert len(answers(out)) == 2
    evaluate(manifest, *flags, "--limit", "3")
    assert (out / "answers.jsonl").read_bytes().startswith(first)
    assert len(answers(out)) == 3
    done = evaluate(manifest, *flags, "--max-tokens", "9", code=1)
    assert "max_tokens was 48 and is now 9" in done.stderr
    assert "--overwrite" in done.stderr

    (manifest.parent / "bad.wav").write_bytes(b"no audio")
    with manifest.open("a") as file:
        file.write("\nbad\tbad.wav\t1\tHi\tsad\tTrue\temo")
    done = evaluate(manifest, *flags, code=1)
    assert done.stderr.splitlines() == [
        "wavllm: 1 questions failed (see answers.jsonl); run it again to ask them again"
    ]
    assert len(answers(out)) == 5
    report = json.loads((out / "report.json").read_text())
    assert (report["num_rows"], report["num_errors"]) == (6, 1)
    assert report["tasks"]["emo"]["num_answered"] == 1


def heed_interrupts() -> None:
    """What a shell starts in the background ignores SIGINT, and so would its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_goes_on(manifest: Path, server: ServerProcess, number: int) -> None:
    lines = [f"{n}\there/audio/short.wav\t1\tWhat was said? {n}\tsad\tTrue\tasr" for n in range(NUM_ROWS)]
    manifest.write_text(HEADER + "\n".join(lines))
    out = manifest.parent / "out"
    flags = ("--server", server.url, "--output", "out", "--concurrency", "2")
    running = subprocess.Popen(
        command(manifest, *flags), cwd=manifest.parent, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
        preexec_fn=heed_interrupts,
    )  # fmt: skip
    deadline = time.monotonic() + TIMEOUT_S
    while not (out / "answers.jsonl").exists() or (out / "answers.jsonl").read_bytes().count(b"\n") < 5:
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.01)
    running.send_signal(number)
    _, said = running.communicate(timeout=TIMEOUT_S)
    if number == signal.SIGINT:
        assert running.returncode == 130
        # Between fork and exec the child is this process still, whose gRPC may have its say.
        (line,) = (line for line in said.splitlines() if "(event_engine)" not in line)
        assert line.startswith("wavllm: interrupted")
    before = answers(out)
    assert 5 <= len(before) < NUM_ROWS
    evaluate(manifest, *flags)
    whole = (out / "answers.jsonl").read_bytes()
    assert whole.count(b"\n") == NUM_ROWS, "something was asked twice"
    assert len(answers(out)) == NUM_ROWS
    assert before.items() <= answers(out).items()
