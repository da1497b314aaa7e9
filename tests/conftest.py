"""Before torch is loaded: one thread for models this small, in the tests' own process and its children."""

from __future__ import annotations

import os
from collections.abc import Generator

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# The same examples in every run of CI: what fails there is what the commit broke. Elsewhere they are random.
hypothesis.settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    hypothesis.settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--no-skips`: what cannot run here fails, for the run that must leave nothing out."""
    parser.addoption("--no-skips", action="store_true", help="a test that would be skipped fails")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure where `--no-skips` asks for it."""
    report = yield
    if report.skipped and item.config.getoption("--no-skips"):
        report.outcome = "failed"
        report.longrepr = f"skipped, and --no-skips was given: {report.longrepr}"
    return report
