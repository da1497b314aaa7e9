"""Real sockets against uvicorn: what ASGI in process cannot show."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import time

import pytest
from fakes import FakeDecoder, FakeEngine, eventually, make_service
from http_harness import RawClient, check_law, counted, json_body, live_server, post, post_head

from server import http_server
from server.http_api import create_app
from server.http_server import HttpServer, PortInUse, bind
from server.types import Stage

CAP = 25 * 2**20 * 4 // 3 + 65536


async def refused_service(**settings):
    """A service whose queue is full."""
    service = make_service(max_queued_requests=1, **settings)
    await service.start()
    return service, service.reserve(num_bytes=1, api_key=None, transport="test")


async def test_expect_100_gets_the_final_status_at_once():
    service, held = await refused_service()
    async with live_server(service, start=False) as server:
        client = await server.connect()
        start = time.monotonic()
        await client.send(post_head(10_000_000, "expect: 100-continue"))
        status, headers = await client.head()
        assert time.monotonic() - start < 0.2
        assert (status, headers["connection"]) == (503, "close")
        assert json.loads(await client.body(headers))["error"]["code"] == "overloaded"
        assert await client.reader.read() == b""
        held.fail(ValueError())


async def test_expect_100_continues_when_there_is_room():
    async with live_server() as server:
        client = await server.connect()
        body = json.dumps(json_body()).encode()
        await client.send(post_head(len(body), "expect: 100-continue"))
        assert (await client.head())[0] == 100
        await client.send(body)
        assert (await client.head())[0] == 200


async def test_a_refusal_in_the_middle_of_a_body_that_was_waited_for_is_drained():
    """Else the rest of the body meets a closed socket, and the client a reset in place of the status."""
    part = b'--B\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n' + b"x" * 900_000
    async with live_server() as server:
        client = await server.connect()
        head = post_head(len(part), "expect: 100-continue", kind="multipart/form-data; boundary=B")
        await client.send(head)
        assert (await client.head())[0] == 100
        await client.send(part)
        status, headers = await client.head()
        assert (status, "connection" in headers) == (400, False)
        assert json.loads(await client.body(headers))["error"]["param"] == "prompt"
        await client.send(post(json_body()))
        assert (await client.head())[0] == 200


async def test_the_slot_is_taken_before_the_body_is_read():
    async with live_server(make_service(max_queued_requests=1)) as server:
        first = await server.connect()
        await first.send(post_head(1000))
        await eventually(lambda: server.service.ledger.num_open == 1)
        assert server.service.ledger.num_bytes == 1000
        second = await server.connect()
        await second.send(post_head(1000))
        assert (await second.head())[0] == 503
        first.vanish()
        await eventually(lambda: server.service.ledger.num_open == 0)
        assert counted(server.service)["requests_cancelled{receiving}"] == 1


async def test_a_refused_client_reads_its_status_and_goes_on_with_the_connection():
    service, held = await refused_service()
    async with live_server(service, start=False) as server:
        client = await server.connect()
        body = b"x" * 900_000
        await client.send(post_head(len(body)) + body)
        status, headers = await client.head()
        assert (status, headers["retry-after"]) == (503, "1")
        assert "connection" not in headers
        await client.body(headers)
        held.fail(ValueError())
        await client.send(post(json_body()))
        assert (await client.head())[0] == 200


@pytest.mark.parametrize("size", [CAP + 1, 60_000_000])
async def test_a_client_that_sends_all_before_it_reads_still_sees_a_413(size):
    async with live_server() as server:
        client = await server.connect()
        await client.send(post_head(size))
        sending = asyncio.create_task(client.send(b"x" * 1_000_000))
        status, headers = await client.head()
        assert (status, headers["connection"]) == (413, "close")
        assert json.loads(await client.body(headers))["error"]["code"] == "payload_too_large"
        await sending


async def test_a_drain_ends_after_a_second():
    async with live_server() as server:
        client = await server.connect()
        await client.send(post_head(CAP + 1) + b"x")
        start = time.monotonic()
        assert (await client.head())[0] == 413
        assert time.monotonic() - start < 0.2
        await asyncio.wait_for(client.reader.read(), 3)
        assert 0.5 < time.monotonic() - start < 2


async def test_a_chunked_body_reserves_the_whole_cap_and_is_cut_off_past_it():
    async with live_server() as server:
        client = await server.connect()
        await client.send(post_head(None))
        await eventually(lambda: server.service.ledger.num_bytes == CAP)
        piece = b"x" * 1_000_000

        async def upload():
            for _ in range(36):
                await client.send(b"%x\r\n" % len(piece) + piece + b"\r\n")

        sending = asyncio.create_task(upload())
        assert (await client.head())[0] == 413
        sending.cancel()
        await eventually(lambda: server.service.ledger.num_open == 0)
        assert counted(server.service)["requests_failed{payload_too_large}"] == 1


async def test_a_chunked_body_under_the_cap_is_answered():
    async with live_server() as server:
        client = await server.connect()
        body = json.dumps(json_body()).encode()
        await client.send(post_head(None))
        for start in range(0, len(body), 1000):
            piece = body[start : start + 1000]
            await client.send(b"%x\r\n" % len(piece) + piece + b"\r\n")
        await client.send(b"0\r\n\r\n")
        assert (await client.head())[0] == 200


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("point", "stage"),
    [
        ("accept", Stage.QUEUED),
        ("start", Stage.QUEUED),
        ("encode", Stage.ENCODING),
        ("prefill", Stage.PREFILLING),
        (1, Stage.GENERATING),
    ],
)
async def test_leaving_in_any_stage_frees_the_place(stream, point, stage, caplog):
    caplog.set_level("INFO")
    engine = FakeEngine(gates={point: asyncio.Event()})
    async with live_server(make_service(engine)) as server:
        client = await server.connect()
        await client.send(post(json_body(stream=stream)))
        await eventually(lambda: bool(engine.live))
        await asyncio.sleep(0.03)
        client.vanish()
        start = time.monotonic()
        await eventually(lambda: not engine.live and server.service.ledger.num_open == 0)
        assert time.monotonic() - start < 0.3
        assert len(engine.aborted) == 1
        assert counted(server.service)[f"requests_cancelled{{{stage.value}}}"] == 1
        check_law(server.service)
        await eventually(lambda: any(getattr(record, "status", 0) == 499 for record in caplog.records))


async def test_leaving_with_another_request_under_way_frees_the_first_ones_place():
    engine = FakeEngine(gates={"encode": asyncio.Event()})
    async with live_server(make_service(engine)) as server:
        client = await server.connect()
        await client.send(post(json_body()) + b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        await eventually(lambda: bool(engine.live))
        await asyncio.sleep(0.03)
        client.vanish()
        await eventually(lambda: not engine.live and server.service.ledger.num_open == 0)
        check_law(server.service)


async def test_leaving_while_decoding():
    decoder = FakeDecoder()
    service = make_service(decoder=decoder)
    await service.start()
    decoder.gate = asyncio.Event()
    async with live_server(service, start=False) as server:
        client = await server.connect()
        await client.send(post(json_body()))
        await eventually(lambda: server.service.ledger.num_open == 1)
        await asyncio.sleep(0.03)
        client.vanish()
        await eventually(lambda: server.service.ledger.num_open == 0)
        assert counted(server.service)["requests_cancelled{decoding}"] == 1


async def test_a_body_that_trickles_ends_at_the_deadline():
    async with live_server(make_service(request_timeout=0.2)) as server:
        client = await server.connect()
        await client.send(post_head(1000) + b"{")
        status, headers = await client.head()
        assert status == 504
        assert json.loads(await client.body(headers))["error"]["code"] == "deadline_exceeded"
        assert counted(server.service)["requests_failed{deadline_exceeded}"] == 1


async def test_what_is_not_http_gets_the_same_error_shape():
    async with live_server() as server:
        client = await server.connect()
        await client.send(b"EHLO there\r\n\r\n")
        status, headers = await client.head()
        assert (status, len(headers["x-request-id"])) == (400, 32)
        assert json.loads(await client.body(headers))["error"]["code"] == "invalid_request"


@pytest.mark.parametrize("head", [b"GET /" + b"a" * 200_000, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 40_000])
async def test_a_head_without_end_is_refused(head):
    async with live_server() as server:
        client = await server.connect()
        await client.send(head)
        assert (await client.head())[0] == 400
        assert server.service.ledger.num_open == 0


async def test_a_head_that_does_not_come_is_given_up(monkeypatch):
    monkeypatch.setattr("server.http_server.HEAD_TIMEOUT_S", 0.1)
    async with live_server() as server:
        client = await server.connect()
        await client.send(b"GET / HTTP/1.1\r\n")
        assert await asyncio.wait_for(client.reader.read(), 2) == b""


UPGRADE = ("connection: Upgrade, HTTP2-Settings", "upgrade: h2c", "http2-settings: AAMAAABkAAQAoAAAAAIAAAAA")


@pytest.mark.parametrize("size", [1, 7, 2**20])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_a_wish_for_another_protocol_is_declined_and_the_body_read(size, is_chunked):
    """As Java's client sends it with every request; for httptools what follows such a head is no body."""
    body = json.dumps(json_body()).encode()
    sent = post_head(None if is_chunked else len(body), *UPGRADE)
    sent += b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if is_chunked else body
    sent += post(json_body()) + post(json_body(), *UPGRADE)
    async with live_server() as server:
        client = await server.connect()
        for start in range(0, len(sent), size):
            await client.send(sent[start : start + size])
        for _ in range(3):
            status, headers = await client.head()
            answer = json.loads(await client.body(headers))
            assert (status, answer["choices"][0]["message"]["content"]) == (200, "Hello, wörld!")


async def test_a_body_after_such_a_wish_is_no_request():
    hidden = b"GET /livez HTTP/1.1\r\nhost: test\r\n\r\n"
    async with live_server() as server:
        client = await server.connect()
        await client.send(post_head(len(hidden), *UPGRADE))
        await asyncio.sleep(0.1)
        await client.send(hidden)
        status, headers = await client.head()
        assert status == 400
        await client.body(headers)
        await client.send(b"GET /nowhere HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n")
        assert (await client.head())[0] == 404


WEBSOCKET = ("connection: upgrade", "upgrade: websocket", "content-length: 0")


@pytest.mark.parametrize("wish", [UPGRADE, WEBSOCKET])
async def test_such_a_wish_without_a_body(wish):
    async with live_server() as server:
        client = await server.connect()
        for _ in range(2):
            lines = ["GET /livez HTTP/1.1", "host: test", *wish]
            await client.send(("\r\n".join(lines) + "\r\n\r\n").encode())
            status, headers = await client.head()
            assert status == 200
            await client.body(headers)


async def test_many_such_wishes_at_once():
    async with live_server() as server:
        client = await server.connect()
        await client.send((post_head(2, *UPGRADE) + b"{}") * 300)
        for _ in range(300):
            status, headers = await client.head()
            assert status == 400
            await client.body(headers)


async def test_a_body_that_stops_coming_gives_its_place_back(monkeypatch):
    monkeypatch.setattr("server.http_body.BODY_STALL_S", 0.2)
    async with live_server() as server:
        client = await server.connect()
        body = json.dumps(json_body()).encode()
        await client.send(post_head(len(body)))
        for start in range(0, len(body), len(body) // 8):  # slowly, but it comes
            await client.send(body[start : start + len(body) // 8])
            await asyncio.sleep(0.05)
        status, headers = await client.head()
        assert status == 200
        await client.body(headers)
        await client.send(post_head(len(body)) + body[:-1])
        status, headers = await asyncio.wait_for(client.head(), 2)
        assert status == 504
        assert json.loads(await client.body(headers))["error"]["code"] == "deadline_exceeded"
        assert server.service.ledger.num_open == 0


def test_a_peer_that_reads_nothing_loses_its_connection(monkeypatch):
    monkeypatch.setattr("server.http_server.UNREAD_MS", 500)
    with bind("127.0.0.1", 0)[0] as listener, socket.socket() as client:
        client.connect(listener.getsockname())
        listener.setblocking(True)
        ours, _ = listener.accept()
        with ours:
            ours.settimeout(20)
            with pytest.raises(TimeoutError) as caught:
                ours.sendall(bytes(2**26))
            assert caught.value.errno == errno.ETIMEDOUT  # the kernel's; ours would have none


async def test_a_kept_connection_is_not_given_up_by_the_heads_timer(monkeypatch):
    monkeypatch.setattr("server.http_server.HEAD_TIMEOUT_S", 0.1)
    async with live_server() as server:
        client = await server.connect()
        for _ in range(2):
            await client.send(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            status, headers = await client.head()
            assert status == 200
            await client.body(headers)
            await asyncio.sleep(0.2)


async def test_health_answers_while_a_large_body_is_taken_apart():
    async with live_server() as server:
        busy = await server.connect()
        body = json.dumps(json_body(audio={"data": "A" * (25 * 2**20 // 3 * 4)})).encode()
        sending = asyncio.create_task(busy.send(post_head(len(body)) + body))
        probe = await server.connect()
        worst = 0.0
        answer = asyncio.create_task(busy.head())
        while not answer.done():
            start = time.monotonic()
            await probe.send(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
            _, headers = await probe.head()
            await probe.body(headers)
            worst = max(worst, time.monotonic() - start)
        await sending
        assert (await answer)[0] == 415
        assert worst < 0.3, "the event loop stood still; locally about 0.05 s, with both ends in one loop"


def resolve_to(monkeypatch, *names):
    """Let every host have these addresses; Linux has all of 127.0.0.0/8."""
    kinds = {True: socket.AF_INET6, False: socket.AF_INET}
    found = [
        (kinds[":" in name], socket.SOCK_STREAM, 6, "", (name, 0, 0, 0) if ":" in name else (name, 0))
        for name in names
    ]
    monkeypatch.setattr("server.http_server.socket.getaddrinfo", lambda *_, **__: found)


async def test_every_address_of_the_host_answers(monkeypatch):
    """As `localhost`, which is ::1 to some clients and 127.0.0.1 to others."""
    resolve_to(monkeypatch, "127.0.0.1", "127.0.0.2", "127.0.0.2")
    service = make_service()
    server = HttpServer(create_app(service), service.settings, 0)
    port = await server.start()
    monkeypatch.undo()
    for name in ("127.0.0.1", "127.0.0.2"):
        client = RawClient(*await asyncio.open_connection(name, port))
        await client.send(b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await client.head())[0] == 200
        client.vanish()
    await server.stop()
    for name in ("127.0.0.1", "127.0.0.2"):
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(name, port)


def test_an_address_that_the_machine_lacks_is_passed_over(monkeypatch):
    """As ::1 is in many containers whose hosts file names it."""
    elsewhere = "192.0.2.1"
    resolve_to(monkeypatch, elsewhere, "127.0.0.2")
    (listener,) = bind("localhost", 0)
    with listener:
        assert listener.getsockname()[0] == "127.0.0.2"
    resolve_to(monkeypatch, elsewhere)
    with pytest.raises(PortInUse, match=r"^cannot listen on localhost port 0: Cannot assign"):
        bind("localhost", 0)


def test_a_port_taken_at_one_address_is_taken(monkeypatch):
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        resolve_to(monkeypatch, "127.0.0.1", "127.0.0.2")
        with pytest.raises(PortInUse, match=rf"^cannot listen on localhost port {port}: Address already"):
            bind("localhost", port)
        socket.create_server(("127.0.0.1", port)).close()  # what was bound before is closed again


def test_a_free_port_is_one_that_is_free_at_every_address(monkeypatch):
    resolve_to(monkeypatch, "127.0.0.1", "127.0.0.2")
    listen, ports = http_server._listen, []

    def first_clash(family, address):
        """The second address of the first try."""
        if len(ports) == 1:
            ports.append(None)
            raise OSError(errno.EADDRINUSE, "Address already in use")
        listener = listen(family, address)
        ports.append(listener.getsockname()[1])
        return listener

    monkeypatch.setattr(http_server, "_listen", first_clash)
    listeners = bind("localhost", 0)
    assert len({listener.getsockname()[1] for listener in listeners}) == 1
    assert [listener.getsockname()[1] for listener in listeners] == ports[2:]
    for listener in listeners:
        listener.close()


async def test_a_port_in_use_is_one_clear_line():
    async with live_server() as server:
        second = HttpServer(lambda *_: None, server.service.settings, server.port)
        with pytest.raises(PortInUse, match=f"port {server.port}"):
            await second.start()


async def test_pipelined_requests_are_answered_in_order():
    async with live_server() as server:
        client = await server.connect()
        await client.send(post(json_body()) + b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n")
        for wanted in ("chat.completion", "alive"):
            status, headers = await client.head()
            assert status == 200
            assert wanted.encode() in await client.body(headers)
