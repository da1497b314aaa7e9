"""A mark of the files that a model is loaded from."""

from __future__ import annotations

import hashlib
from pathlib import Path


def fingerprint(model_dir: Path) -> str:
    """The directory's name, and a mark that changes when a file in it is written anew."""
    files = sorted(path for path in model_dir.iterdir() if path.is_file())
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{model_dir.resolve().name}@{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}"
