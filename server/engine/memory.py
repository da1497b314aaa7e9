"""How much memory is free for this process, its container's limit included."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """Files of one version of the kernel's control groups: limit, use, and statistics with its file cache."""

    limit: str
    used: str
    statistics: str
    cache: tuple[str, ...]


VERSIONS = (
    ControlGroup("memory.max", "memory.current", "memory.stat", ("inactive_file", "active_file")),
    ControlGroup(
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        ("total_inactive_file", "total_active_file"),
    ),
)


def free_bytes(root: Path = Path("/sys/fs/cgroup")) -> int:
    """The machine's available memory, or what a control group leaves of its limit if that is less.

    psutil knows the machine alone. Cached files, such as the weights just read, count as free, for the kernel
    drops them.
    """
    free = int(psutil.virtual_memory().available)
    for group in VERSIONS:
        try:
            free = min(free, _left(root, group))
        except (OSError, ValueError):  # no such version here, or no limit ("max")
            continue
    return free


def _left(root: Path, group: ControlGroup) -> int:
    limit, used = (int((root / name).read_text(encoding="ascii")) for name in (group.limit, group.used))
    rows = (line.split() for line in (root / group.statistics).read_text(encoding="ascii").splitlines())
    cached = sum(int(value) for name, value in rows if name in group.cache)
    return max(0, limit - used + cached)
