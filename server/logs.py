"""Log lines, as JSON or text. Never a prompt, a transcript or audio: only ids, sizes, times and codes."""

from __future__ import annotations

import datetime
import json
import logging
import os
import sys
import traceback
from typing import Any

ACCESS = logging.getLogger("wavllm.access")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
_QUIET = ("uvicorn", "uvicorn.error", "httpx", "asyncio", "grpc", "numba")
"""Libraries whose debug lines say nothing of this server; numba's are the code of every kernel."""


class DiscreetFormatter(logging.Formatter):
    """Tells of an exception what it is and where it came from, not its message: that may quote a client."""

    def formatException(self, ei: Any) -> str:
        """Type and frames of the exception and of those that led to it, the last one first."""
        parts: list[str] = []
        error: BaseException | None = ei[1]
        while error is not None:
            frames = "".join(traceback.format_tb(error.__traceback__))
            parts.append(f"{type(error).__name__} at\n{frames}")
            error = error.__cause__ or error.__context__
        return "\n".join(parts)


class JsonFormatter(DiscreetFormatter):
    """One JSON object a line; what was given as `extra` becomes fields."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        line: dict[str, Any] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **extras(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(DiscreetFormatter):
    """For people: time, level, logger, message, then `name=value` pairs."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, and its traceback if it has one."""
        pairs = "".join(f" {name}={value}" for name, value in extras(record).items())
        line = f"{_timestamp(record)} {record.levelname:7} {record.name}: {record.getMessage()}{pairs}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def extras(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller gave as `extra`."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def configure(log_format: str, level: str) -> None:
    """Send all logs of this process to standard error in this shape. Replaces earlier handlers.

    Call it before grpc is imported: its C core asks only then whether it may write, and its lines are plain
    text. What the operator set wins.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def log_request(*, level: int = logging.INFO, **fields: object) -> None:
    """The one access line of a request; fields without a value are left out."""
    ACCESS.log(level, "request", extra={name: value for name, value in fields.items() if value is not None})


def _timestamp(record: logging.LogRecord) -> str:
    moment = datetime.datetime.fromtimestamp(record.created, datetime.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
