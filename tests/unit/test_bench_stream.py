"""Server-sent events as they come over a wire, cut anywhere."""

from __future__ import annotations

import json

import pytest

from server.bench.stream import ChatReader, EventReader, MalformedStream
from server.bench.types import Piece

STREAM = ': hi\n\ndata: {"a": "thrée"}\n\n: x\nevent: y\ndata:two\ndata: lines\n\nid: 1\n\ndata: [DONE]\n\n'
EVENTS = ['{"a": "thrée"}', "two\nlines", "[DONE]"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_events_do_not_depend_on_where_the_bytes_were_cut(end: str, size: int):
    data = STREAM.replace("\n", end).encode()
    reader = EventReader()
    events = [
        event for start in range(0, len(data), size) for event in reader.feed(data[start : start + size])
    ]
    assert events == EVENTS


def test_an_event_counts_once_it_is_whole():
    reader = EventReader()
    assert reader.feed(b"data: a\n") == []
    assert reader.feed(b"\ndata: b") == ["a"]
    with pytest.raises(MalformedStream, match="UTF-8"):
        reader.feed(b"\xff\n\n")


def chunk(delta: dict, finish_reason: str | None = None, **more: object) -> str:
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}], **more})


def test_a_chat_as_it_grows():
    reader = ChatReader()
    reader.take(chunk({"role": "assistant", "content": ""}), 1.0)
    reader.take(chunk({"token_ids": [5]}), 2.0)
    reader.take(chunk({"content": "Hé", "token_ids": [6, 7]}), 3.0)
    reader.take(chunk({"content": None}), 4.0)
    reader.take(chunk({}, "stop"), 5.0)
    assert reader.done_at is None
    reader.take('{"choices": [], "usage": {"completion_tokens": 3}}', 6.0)
    reader.take("[DONE]", 7.0)
    assert reader.pieces == [Piece(2.0, "", (5,)), Piece(3.0, "Hé", (6, 7))]
    assert (reader.num_chars, reader.usage_tokens) == (2, 3)
    assert (reader.finish_reason, reader.done_at, reader.error) == ("stop", 7.0, None)


def test_an_error_inside_the_stream():
    reader = ChatReader()
    reader.take('{"error": {"message": "broke", "code": "engine_error"}}', 1.0)
    assert reader.error == {"message": "broke", "code": "engine_error"}


@pytest.mark.parametrize(
    "data", ["hello", "{}", "[]", "7", '{"choices": [{}]}', '{"choices": [{"delta": 3}]}']
)
def test_nonsense_is_told(data: str):
    with pytest.raises(MalformedStream, match="not a chunk"):
        ChatReader().take(data, 1.0)
