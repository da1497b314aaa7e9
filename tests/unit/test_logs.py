"""Log lines tell where an error came from and never what a client said."""

from __future__ import annotations

import logging
import sys

import pytest

from server.logs import JsonFormatter, TextFormatter

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


@pytest.mark.parametrize("formatter", [JsonFormatter(), TextFormatter()])
def test_an_exception_is_logged_without_its_message(formatter: logging.Formatter) -> None:
    line = formatter.format(record_of_a_bug())
    assert SECRET not in line
    for told in ("ValueError", "KeyError", "record_of_a_bug", "request failed"):
        assert told in line
