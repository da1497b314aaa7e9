"""What the requirements files pin."""

from __future__ import annotations

from pathlib import Path

from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def pins(lock: str) -> dict[str, str]:
    """Versions that a lock in the repository's root pins, by canonical name."""
    lines = (ROOT / lock).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pairs}
