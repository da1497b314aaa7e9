"""Where and how a benchmark ran, for whoever reads its results later."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
LIBRARIES = ("wavllm-server", "httpx", "numpy")
SECRET = "--api-key"


def setup_json(command: Sequence[str]) -> dict[str, Any]:
    """The generator's side. command: as it was called; keys are left out."""
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": without_secrets(command),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in LIBRARIES}},
        "processor": processor(),
        "num_cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "platform": platform.platform(),
        "commit": commit(ROOT),
    }


def without_secrets(command: Sequence[str]) -> list[str]:
    """The words of a command line with "***" for the value of --api-key."""
    shown: list[str] = []
    for word in command:
        if shown and shown[-1] == SECRET:
            shown.append("***")
        elif word.startswith(f"{SECRET}="):
            shown.append(f"{SECRET}=***")
        else:
            shown.append(word)
    return shown


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Its name, else the kind of machine."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def commit(root: Path) -> str | None:
    """The commit of the generator's checkout, "-dirty" with changes; None without one."""
    if not (root / ".git").exists():
        return None
    command = ("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
