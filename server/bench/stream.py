"""Server-sent events of a chat stream, from bytes to what came when. Knows nothing of sockets."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from server.bench.types import Piece

DONE = "[DONE]"


class MalformedStream(Exception):
    """The stream holds what no chat stream has."""


@dataclass(slots=True)
class EventReader:
    """Takes bytes as they come, gives the data of whole events; comments and other fields are dropped."""

    _rest: bytes = b""
    _data: list[bytes] = field(default_factory=list)

    def feed(self, data: bytes) -> list[str]:
        """Events that are whole with these bytes. Raises MalformedStream."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        events = []
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                events.append(_decode(b"\n".join(self._data)))
                self._data = []
        return events


@dataclass(slots=True)
class ChatReader:
    """The answer as it grows. done_at: when its end was read. error: what ended it inside the stream."""

    pieces: list[Piece] = field(default_factory=list)
    num_chars: int = 0
    usage_tokens: int | None = None
    finish_reason: str | None = None
    done_at: float | None = None
    error: dict[str, Any] | None = None

    def take(self, data: str, at: float) -> None:
        """One event, read at this instant. Raises MalformedStream."""
        if data == DONE:
            self.done_at = at
            return
        try:
            self._take_chunk(json.loads(data), at)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise MalformedStream(f"not a chunk of a chat: {data[:200]}") from error

    def _take_chunk(self, chunk: dict[str, Any], at: float) -> None:
        if chunk.get("error"):
            self.error = dict(chunk["error"])
            return
        if chunk.get("usage"):
            self.usage_tokens = int(chunk["usage"]["completion_tokens"])
        if chunk["choices"]:
            choice = chunk["choices"][0]
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            self._take_delta(choice["delta"], at)

    def _take_delta(self, delta: dict[str, Any], at: float) -> None:
        text, ids = str(delta.get("content") or ""), tuple(delta.get("token_ids") or ())
        if text or ids:
            self.pieces.append(Piece(at, text, ids))
            self.num_chars += len(text)


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise MalformedStream("an event is not UTF-8") from error
