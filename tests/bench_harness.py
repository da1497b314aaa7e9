"""A server that does as a script says, and a benchmark of it in the same event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from server.bench.questions import synthetic_clip
from server.bench.run import bench
from server.bench.types import Api, Plan, Question, ReferenceTime

CHUNK = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "scripted"}
MODEL = {"id": "scripted", "object": "model", "max_audio_seconds": 30.0}


@dataclass(frozen=True)
class Script:
    """What one request meets.

    wait_s: before the status. gap_s: before every piece but the first. sizes: tokens of each piece, else one.
    status 0: the connection is dropped at once. end: "done", "cut" (the connection is dropped after the
    pieces), "early" (the body ends well, but without its [DONE]), "error" (inside the stream), "nonsense" (an
    event that is no chunk), or "hang".
    """

    status: int = 200
    code: str = "overloaded"
    wait_s: float = 0.0
    pieces: tuple[str, ...] = ("One", " two", " thrée")
    sizes: tuple[int, ...] = ()
    gap_s: float = 0.0
    end: str = "done"


@dataclass
class Request:
    """What was asked. number: from 0, in the order of arrival."""

    number: int
    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class ScriptedServer:
    """Answers chats as `script` says of each; tells what it saw."""

    script: Callable[[Request], Script]
    models: Any = field(default_factory=lambda: {"data": [MODEL]})
    port: int = 0
    requests: list[Request] = field(default_factory=list)
    num_running: int = 0
    most_running: int = 0
    num_connections: int = 0
    num_left: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, request by request."""
        self.num_connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await self._exchange(reader, writer):
                pass
        writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        path = head[0].split(" ")[1]
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)
        }
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if not path.endswith(("/chat", "/completions")):
            await _reply(writer, 200 if path == "/v1/models" else 404, self.models)
            return True
        self.requests.append(Request(len(self.requests), path, headers, body))
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            return await self._answer(self.requests[-1], writer)
        finally:
            self.num_running -= 1

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        script = self.script(request)
        await asyncio.sleep(script.wait_s)
        if script.status == 0:
            return False
        if script.status != 200:
            error = {"message": "no", "type": "t", "param": None, "code": script.code}
            await _reply(writer, script.status, {"error": error})
            return True
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        try:
            return await self._stream(script, request, writer)
        except ConnectionError:
            self.num_left += 1
            return False

    async def _stream(self, script: Script, request: Request, writer: asyncio.StreamWriter) -> bool:
        await _event(writer, b": keep-alive\n\n")
        await _chunk(writer, {"role": "assistant", "content": ""})
        is_speech = request.path == "/v1/speech/chat"
        for number, piece in enumerate(script.pieces):
            if number:
                await asyncio.sleep(script.gap_s)
            size = script.sizes[number] if script.sizes else 1
            ids = {"token_ids": [ord(piece[0]) + n for n in range(size)]} if is_speech else {}
            await _chunk(writer, {"content": piece} | ids)
        if script.end == "hang":
            await asyncio.sleep(60)
        if script.end == "nonsense":
            await _event(writer, b"data: {}\n\n")
        if script.end == "error":
            await _event(writer, b'data: {"error": {"message": "broke", "code": "engine_error"}}\n\n')
        if script.end in ("done", "early"):
            await self._finish(script, request, writer)
        return script.end == "done"

    async def _finish(self, script: Script, request: Request, writer: asyncio.StreamWriter) -> None:
        await _chunk(writer, {}, "stop")
        if b'"include_usage": true' in request.body:
            usage = {"completion_tokens": sum(script.sizes) or len(script.pieces)}
            await _event(writer, _data({**CHUNK, "choices": [], "usage": usage}))
        if script.end == "done":
            await _event(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        await writer.drain()


async def _reply(writer: asyncio.StreamWriter, status: int, body: Any) -> None:
    data = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    writer.write(head.encode() + data)
    await writer.drain()


async def _chunk(writer: asyncio.StreamWriter, delta: dict[str, Any], finish: str | None = None) -> None:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    await _event(writer, _data({**CHUNK, "choices": [choice]}))


def _data(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


async def _event(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
    await writer.drain()


@contextlib.asynccontextmanager
async def scripted(script: Script | Callable[[Request], Script]) -> AsyncIterator[ScriptedServer]:
    """A running server; one script for all, or one by request."""
    server = ScriptedServer(script if callable(script) else lambda request: script)
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        with contextlib.suppress(asyncio.CancelledError):
            await server.serve(reader, writer)
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in connections:
            task.cancel()
        await asyncio.gather(*connections)


@contextlib.contextmanager
def silent_bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """No progress bar."""
    yield lambda done, total, piece: None


def plan_of(url: str, output: Path, **changes: Any) -> Plan:
    """Ten requests at once, asked alone before, unless the changes say otherwise."""
    plan = Plan(
        server=url,
        api=Api.SPEECH,
        api_key=None,
        model=None,
        manifest=None,
        audio_root=None,
        audio=(_clip_file(output),),
        prompts=("What is said?",),
        rates=(float("inf"),),
        num_requests=10,
        duration_s=None,
        num_warmup=0,
        burstiness=1.0,
        max_concurrency=None,
        max_tokens=64,
        seed=1,
        slos_ms={},
        cancel_share=0.0,
        timeout_s=30.0,
        reference=ReferenceTime.BEFORE,
        output=output / "results",
    )
    return replace(plan, **changes)


def _clip_file(folder: Path) -> Path:
    path = folder / "tone.wav"
    path.write_bytes(synthetic_clip(0.5, 0).data)
    return path


async def run_bench(server: ScriptedServer, folder: Path, **changes: Any) -> dict[str, Any]:
    """The results of a benchmark of this server."""
    return await bench(plan_of(server.url, folder, **changes), silent_bar)


def questions_of(count: int) -> list[Question]:
    """Questions about a clip of two seconds."""
    clip = synthetic_clip(2.0, 0)
    return [Question(f"q{n}", clip, f"Ask {n}.") for n in range(count)]
