"""schemathesis asks the server everything that /openapi.json allows and much that it forbids."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest
from fakes import make_service
from http_harness import live_server

HERE = Path(__file__).parent
MAX_S = 240
"""Fuzzing goes on until then; the phases before it take what they take."""

RANDOMNESS = ["--generation-deterministic"] if os.environ.get("CI") else ["--generation-database", "none"]
MIN_CASES = 100
"""Fewer were no search; two idle cores make 8,000."""


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_schemathesis_finds_no_violation(tmp_path: Path) -> None:
    async with live_server(make_service()) as server:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(HERE / "schemathesis.toml")),
            *("run", f"http://127.0.0.1:{server.port}/openapi.json", "--checks", "all", "--no-color"),
            *("--continue-on-failure", "--request-timeout", "30"),
            *("--max-time", str(MAX_S), "--phases", "examples,coverage,fuzzing,stateful"),
            *RANDOMNESS,
        ]
        environment = {
            **os.environ,
            "SCHEMATHESIS_HOOKS": "schemathesis_hooks",
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parent.parent)]),
        }
        running = await asyncio.create_subprocess_exec(
            *command,
            cwd=tmp_path,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output = (await running.communicate())[0].decode()
    assert running.returncode == 0, output
    assert "No issues found" in output
    (num_cases,) = re.findall(r"(\d+) generated", output)
    assert int(num_cases) > MIN_CASES, output
