"""The bar shows names as they are."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from server import cli_progress


def test_a_name_is_no_markup(monkeypatch: pytest.MonkeyPatch):
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200)
    monkeypatch.setattr(cli_progress, "Console", lambda stderr: console)
    monkeypatch.setattr(cli_progress, "is_terminal", lambda: True)
    with cli_progress.progress_bar("Evaluating") as report:
        report(1, 2, "clip [/b] [red]1")
    assert "clip [/b] [red]1" in out.getvalue()
