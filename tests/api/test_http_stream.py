"""Server-sent events: framing, order, keep-alives, errors before and after the first byte."""

from __future__ import annotations

import asyncio
import time

import pytest
from fakes import FakeEngine, eventually, make_service
from http_harness import (
    CHAT,
    check_law,
    client_of,
    counted,
    error_of,
    events_of,
    json_body,
    live_server,
    post,
)

from server.errors import EngineError, Overloaded

PIECES = ("One", "\n\ndata: two", " thrée 😀", "\r\n", "\u2028", "end")


async def test_a_stream_is_role_deltas_finish_done():
    async with client_of(make_service(FakeEngine(pieces=PIECES))) as client:
        whole = (await client.post(CHAT, json=json_body())).json()
        response = await client.post(CHAT, json=json_body(stream=True))
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    assert (response.headers["cache-control"], response.headers["x-accel-buffering"]) == ("no-cache", "no")
    *chunks, end = events_of(response.text)
    assert end == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert choices[-1]["delta"] == {}
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    text = "".join(choice["delta"].get("content", "") for choice in choices)
    assert text == "".join(PIECES) == whole["choices"][0]["message"]["content"]
    assert chunks[-1]["audio"] == whole["audio"]
    assert set(chunks[-1]["timings"]) == set(whole["timings"])
    assert all("usage" not in chunk for chunk in chunks)


async def test_the_usage_chunk_comes_when_asked_for():
    body = json_body(stream=True, stream_options={"include_usage": True})
    async with client_of(make_service()) as client:
        *_, finish, usage, end = events_of((await client.post(CHAT, json=body)).text)
        whole = (await client.post(CHAT, json=json_body())).json()
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert (usage["choices"], usage["usage"]) == ([], whole["usage"])
    assert end == "[DONE]"


async def test_token_ids_come_with_their_deltas_even_without_text():
    engine = FakeEngine(pieces=("a", "", "b"))
    async with client_of(make_service(engine)) as client:
        asked = events_of((await client.post(CHAT, json=json_body(stream=True, return_token_ids=True))).text)
        plain = events_of((await client.post(CHAT, json=json_body(stream=True))).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in asked[1:-2]]
    assert deltas == [
        {"content": "a", "token_ids": [100]},
        {"token_ids": [101]},
        {"content": "b", "token_ids": [102]},
    ]
    assert [chunk["choices"][0]["delta"] for chunk in plain[1:-2]] == [{"content": "a"}, {"content": "b"}]


@pytest.mark.parametrize(
    ("fields", "status"),
    [({"prompt": "x" * 4001}, 400), ({"audio": {"data": "AAAA"}}, 415), ({"model": "m"}, 404)],
)
async def test_refusals_of_a_stream_have_their_real_status(fields, status):
    async with client_of(make_service()) as client:
        response = await client.post(CHAT, json=json_body(stream=True, **fields))
    assert response.status_code == status
    error_of(response)


async def test_the_200_is_held_back_until_the_engine_accepts():
    async with client_of(make_service(FakeEngine(refuse=Overloaded("full")))) as client:
        response = await client.post(CHAT, json=json_body(stream=True))
    assert response.status_code == 503


async def test_an_error_after_the_first_byte_is_an_event_and_the_end():
    service = make_service(FakeEngine(error=EngineError("broken"), fail_after=1))
    async with client_of(service) as client:
        response = await client.post(CHAT, json=json_body(stream=True))
    *chunks, last = events_of(response.text)
    assert response.status_code == 200
    assert [chunk["choices"][0]["delta"].get("content") for chunk in chunks] == ["", "Hello"]
    assert last == {
        "error": {"message": "broken", "type": "server_error", "param": None, "code": "engine_error"}
    }
    assert counted(service)["requests_failed{engine_error}"] == 1
    check_law(service)


async def test_a_deadline_in_the_middle_is_an_event_too():
    service = make_service(FakeEngine(gates={2: asyncio.Event()}))
    async with client_of(service) as client:
        response = await client.post(CHAT, json=json_body(stream=True, timeout_s=0.1))
    assert events_of(response.text)[-1]["error"]["code"] == "deadline_exceeded"


async def test_deltas_arrive_as_they_are_made():
    gates = {index: asyncio.Event() for index in range(4)}
    async with live_server(make_service(FakeEngine(gates=gates))) as server:
        client = await server.connect()
        await client.send(post(json_body(stream=True)))
        status, headers = await client.head()
        assert (status, headers["transfer-encoding"]) == (200, "chunked")
        assert b'"role":"assistant"' in await client.read_until(b"\n\n")
        for index, text in enumerate(("Hello", ", ", "wörld")):
            gates[index].set()
            assert f'"content":"{text}"'.encode() in await client.read_until(b"\n\n\r\n")
        gates[3].set()
        end = await client.read_until(b"0\r\n\r\n")
        assert len(end.split(b"\r\n")) == 5  # one chunk, and the end of the chunks
        assert end.index(b'"content":"!"') < end.index(b'"finish_reason":"stop"') < end.index(b"[DONE]")


async def test_keep_alive_comments_from_acceptance_on():
    gates = {"start": asyncio.Event()}
    async with live_server(make_service(FakeEngine(gates=gates), sse_keepalive=0.05)) as server:
        client = await server.connect()
        await client.send(post(json_body(stream=True)))
        await client.head()
        start = time.monotonic()
        for _ in range(4):
            await client.read_until(b": keep-alive\n\n")
        assert 0.15 < time.monotonic() - start < 1.0
        gates["start"].set()
        assert b"[DONE]" in await client.read_until(b"0\r\n\r\n")


async def test_a_reader_that_stalls_holds_no_place():
    engine = FakeEngine(pieces=("x" * 100_000,) * 200)
    async with live_server(make_service(engine)) as server:
        client = await server.connect()
        await client.send(post(json_body(stream=True)))
        await client.head()
        await eventually(lambda: server.service.ledger.num_open == 0)
        assert counted(server.service)["request_success{stop}"] == 1
        client.vanish()
