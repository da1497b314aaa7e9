"""Log lines tell where an error came from and never what a client said."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator

import pytest

from server.logs import JsonFormatter, TextFormatter, configure

SECRET = "words of a client"


def record_of_a_bug() -> logging.LogRecord:
    """As `logger.exception` makes it, for an error that quotes a client and was caused by another."""
    try:
        try:
            raise KeyError(SECRET)
        except KeyError as cause:
            raise ValueError(f"cannot read {SECRET}") from cause
    except ValueError:
        return logging.LogRecord("x", logging.ERROR, __file__, 1, "request failed", (), sys.exc_info())


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.Logger]:
    """The root logger, put back afterwards."""
    root, level = logging.getLogger(), logging.getLogger().level
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    monkeypatch.setenv("GRPC_VERBOSITY", "NONE")
    yield root
    root.setLevel(level)


def test_at_debug_only_the_server_says_everything(root: logging.Logger) -> None:
    configure("json", "debug")
    assert root.isEnabledFor(logging.DEBUG)
    for ours in ("server.serve", "wavllm.access"):
        assert logging.getLogger(ours).isEnabledFor(logging.DEBUG)
    for library in ("numba.core.ssa", "grpc._cython.cygrpc", "uvicorn.error", "asyncio"):
        assert not logging.getLogger(library).isEnabledFor(logging.INFO)
        assert logging.getLogger(library).isEnabledFor(logging.WARNING)


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_an_exception_is_logged_without_its_message(formatter: logging.Formatter) -> None:
    line = formatter.format(record_of_a_bug())
    assert SECRET not in line
    for told in ("ValueError", "KeyError", "record_of_a_bug", "request failed"):
        assert told in line
