"""The mark of a model's files."""

from __future__ import annotations

import os
from pathlib import Path

from server.engine.fingerprint import fingerprint


def test_it_changes_with_the_files(tmp_path: Path):
    model = tmp_path / "mine"
    model.mkdir()
    (model / "config.json").write_text("{}")
    before = fingerprint(model)
    assert before.startswith("mine@")
    (model / "sub").mkdir()
    assert fingerprint(model) == before
    os.utime(model / "config.json", ns=(1, 1))
    touched = fingerprint(model)
    (model / "weights").write_bytes(b"1")
    assert len({before, touched, fingerprint(model)}) == 3
