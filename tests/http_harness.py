"""The REST application over the fakes: in process, or on a real port with raw sockets against it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
from fakes import make_service, wav_clip

from server.http_api import create_app
from server.http_server import HttpServer
from server.service import SpeechService

CHAT = "/v1/speech/chat"


@contextlib.asynccontextmanager
async def client_of(service: SpeechService, *, start: bool = True) -> AsyncIterator[httpx.AsyncClient]:
    """A client in the same process; checks the ledger at the end."""
    if start:
        await service.start()
    transport = httpx.ASGITransport(create_app(service), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    await service.stop()
    service.ledger.check_integrity()
    assert service.ledger.num_open == 0


def json_body(**fields: Any) -> dict[str, Any]:
    """A valid JSON body, unless the fields say otherwise; a field that is `...` is left out."""
    body = {"audio": {"data": base64.b64encode(wav_clip()).decode()}, "prompt": "What is said?", **fields}
    return {name: value for name, value in body.items() if value is not ...}


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error of a response, after checking its shape and the id header."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    return error


def events_of(text: str) -> list[Any]:
    """The data of each server-sent event; comments are None, the end is "[DONE]"."""
    assert text.endswith("\n\n")
    events: list[Any] = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        assert "\n" not in block
        if block.startswith(":"):
            events.append(None)
        else:
            data = block.removeprefix("data: ")
            events.append(data if data == "[DONE]" else json.loads(data))
    return events


def counted(service: SpeechService) -> dict[str, float]:
    """Counters by name and label value: `requests_failed{invalid_audio}`."""
    values = {}
    for family in service.metrics.registry.collect():
        for sample in family.samples:
            if sample.name.endswith("_total"):
                label = "".join(f"{{{value}}}" for value in sample.labels.values())
                name = sample.name.removeprefix("wavllm_").removesuffix("_total")
                values[name + label] = sample.value
    return {name: value for name, value in values.items() if value}


def check_law(service: SpeechService) -> None:
    """Accepted requests are answered, failed, cancelled or still open; each exactly once."""
    values = counted(service)
    ends = ("request_success{", "requests_failed{", "requests_cancelled{")
    ended = sum(value for name, value in values.items() if name.startswith(ends))
    assert values.get("requests_accepted", 0) == ended + service.ledger.num_open
    service.ledger.check_integrity()


@dataclass
class LiveServer:
    """A server on a real port."""

    service: SpeechService
    port: int
    clients: list[RawClient] = field(default_factory=list)

    async def connect(self) -> RawClient:
        """A raw connection; dropped at the end if it still stands."""
        client = RawClient(*await asyncio.open_connection("127.0.0.1", self.port))
        self.clients.append(client)
        return client

    async def drop_clients(self) -> None:
        """Close every connection."""
        for client in self.clients:
            client.vanish()
            with contextlib.suppress(OSError):
                await client.writer.wait_closed()


@dataclass
class RawClient:
    """Bytes in, bytes out."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the next response."""
        text = (await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 5)).decode("latin-1")
        first, *lines = text.rstrip("\r\n").split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        return int(first.split(" ")[1]), headers

    async def body(self, headers: dict[str, str]) -> bytes:
        """A body of known length."""
        return await asyncio.wait_for(self.reader.readexactly(int(headers["content-length"])), 5)

    async def read_until(self, end: bytes) -> bytes:
        return await asyncio.wait_for(self.reader.readuntil(end), 5)

    def vanish(self) -> None:
        """Drop the connection without a word."""
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def live_server(
    service: SpeechService | None = None, *, start: bool = True
) -> AsyncIterator[LiveServer]:
    """uvicorn on a free port; checks the law at the end."""
    service = service or make_service()
    if start:
        await service.start()
    server = HttpServer(create_app(service), service.settings, 0)
    port = await server.start()
    live = LiveServer(service, port)
    try:
        yield live
    finally:
        await live.drop_clients()
        await service.stop()
        await server.stop()
    check_law(service)
    assert service.ledger.num_open == 0


def post_head(length: int | None, *extra: str, path: str = CHAT, kind: str = "application/json") -> bytes:
    """The head of a POST; length None sends the body in chunks."""
    size = "transfer-encoding: chunked" if length is None else f"content-length: {length}"
    lines = [f"POST {path} HTTP/1.1", "host: test", f"content-type: {kind}", size, *extra]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def post(body: dict[str, Any], *extra: str, path: str = CHAT) -> bytes:
    """A whole POST with a JSON body."""
    data = json.dumps(body).encode()
    return post_head(len(data), *extra, path=path) + data
