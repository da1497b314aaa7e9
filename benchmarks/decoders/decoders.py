"""Who decodes: our engine, a peer behind a pipe, a peer behind HTTP. Each in a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import httpx

from benchmarks.decoders.prompts import TextPrompt
from benchmarks.peers.served import END_S, TAIL_CHARS, TIMEOUT_S, Served
from benchmarks.peers.sides import SILENCE_S
from server.bench.types import BenchError
from server.engine_process import EngineProcess
from server.types import Delta, EngineConfig, Failed, Finished, GenerateRequest, SamplingParams


@dataclass(frozen=True, slots=True)
class Decoded:
    """seconds: from the first prompt given to the last token. answers: token ids, in the prompts' order."""

    seconds: float
    answers: list[list[int]]

    @property
    def tokens_per_s(self) -> float:
        """Answer tokens of all prompts together."""
        return sum(map(len, self.answers)) / self.seconds


class Decoder(Protocol):
    """Answers a batch of prompts greedily, each by exactly so many tokens."""

    versions: Mapping[str, str]

    async def decode(self, prompts: Sequence[TextPrompt], num_tokens: int) -> Decoded:
        """All at once. Raises BenchError if it fails."""


class StartedDecoder(Decoder, Protocol):
    """One that may be loading still."""

    async def ready(self) -> None:
        """Wait until it has loaded; it is asked for nothing before. Raises BenchError if it fails."""


class EngineDecoder:
    """Our engine as `wavllm serve` has it, without a transport."""

    versions: Mapping[str, str] = {}

    def __init__(self, engine: EngineProcess) -> None:
        self._engine = engine
        self._ids = itertools.count()

    @classmethod
    @contextlib.asynccontextmanager
    async def started(cls, model: Path) -> AsyncIterator[EngineDecoder]:
        """With the engine's own defaults, on the CPU in float32."""
        config = EngineConfig(model, device="cpu", dtype="float32")
        engine = EngineProcess(config, heartbeat_timeout_s=SILENCE_S)
        await engine.start()
        try:
            yield cls(engine)
        finally:
            await engine.stop()

    async def decode(self, prompts: Sequence[TextPrompt], num_tokens: int) -> Decoded:
        """All at once."""
        return await timed([self._answer(prompt, num_tokens) for prompt in prompts])

    async def _answer(self, prompt: TextPrompt, num_tokens: int) -> list[int]:
        sampling = SamplingParams(num_tokens)
        name = f"decode-{next(self._ids)}"
        request = GenerateRequest(name, prompt.instruction, None, b"", sampling, system=prompt.system)
        answer: list[int] = []
        async for event in self._engine.generate(request):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Delta):
                answer += event.token_ids
            if isinstance(event, Finished) and event.usage.prompt_tokens != len(prompt.ids):
                raise BenchError(f"the prompt has {event.usage.prompt_tokens} tokens, not {len(prompt.ids)}")
        return answer


async def timed(answers: Sequence[Any]) -> Decoded:
    """Await all at once."""
    begin = time.perf_counter()
    done = await asyncio.gather(*answers)
    return Decoded(time.perf_counter() - begin, done)


class PipedDecoder:
    """A child that speaks `piped`; a context manager. Ready, it stands still while others are measured."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            text=True,
            start_new_session=True,
        )
        self._stdin, self._stdout = _pipes(self._process)
        self.versions: Mapping[str, str] = {}

    def __enter__(self) -> PipedDecoder:
        return self

    def __exit__(self, *error: object) -> None:
        """The end of its stdin asks the child to end; soon after nothing of it is left."""
        self._signal(signal.SIGCONT)
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._stdout.close()
        self._log.close()

    async def ready(self) -> None:
        """Wait for its first line."""
        self.versions = await asyncio.to_thread(self._read)
        self._signal(signal.SIGSTOP)

    async def decode(self, prompts: Sequence[TextPrompt], num_tokens: int) -> Decoded:
        """All at once; the child's clock."""
        asked = {"prompts": [prompt.ids for prompt in prompts], "num_tokens": num_tokens}
        return Decoded(**await asyncio.to_thread(self._ask, asked))

    def _ask(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        self._signal(signal.SIGCONT)
        try:
            with contextlib.suppress(BrokenPipeError):
                self._stdin.write(json.dumps(asked) + "\n")
                self._stdin.flush()
            return self._read()
        finally:
            self._signal(signal.SIGSTOP)

    def _read(self) -> dict[str, Any]:
        """The child's next line. Raises BenchError with the end of its log if it has ended."""
        line = self._stdout.readline()
        if not line:
            self._log.seek(0)
            raise BenchError(f"no answer:\n{self._log.read().decode(errors='replace')[-TAIL_CHARS:]}")
        said: dict[str, Any] = json.loads(line)
        return said

    def _signal(self, number: signal.Signals) -> None:
        """To all processes of the child that are left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    if process.stdin is None or process.stdout is None:
        raise ValueError("stdin and stdout are not pipes")
    return process.stdin, process.stdout


@dataclass(frozen=True, slots=True)
class Completions:
    """How a server is asked for a completion: the path, the body, and where its reply has the token ids."""

    path: str
    body: Callable[[Sequence[int], int], dict[str, Any]]
    ids_of: Callable[[dict[str, Any]], list[int]]


class ServedDecoder:
    """A running server, asked for one completion a request. Once ready, it stands still while others are
    measured.
    """

    def __init__(self, server: Served, api: Completions, versions: Mapping[str, str]) -> None:
        self._server, self._api, self.versions = server, api, versions
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(base_url=server.url, timeout=TIMEOUT_S, limits=limits)

    async def ready(self) -> None:
        """The server is."""
        self._server.pause()

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def decode(self, prompts: Sequence[TextPrompt], num_tokens: int) -> Decoded:
        """All at once."""
        with self._server.awake():
            return await timed([self._answer(prompt.ids, num_tokens) for prompt in prompts])

    async def _answer(self, ids: Sequence[int], num_tokens: int) -> list[int]:
        response = await self._client.post(self._api.path, json=self._api.body(ids, num_tokens))
        if response.status_code != httpx.codes.OK:
            raise BenchError(f"HTTP {response.status_code}: {response.text[:TAIL_CHARS]}")
        return self._api.ids_of(response.json())
