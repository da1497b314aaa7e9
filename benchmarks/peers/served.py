"""Servers in processes of their own: started, waited for, ended; and asked over HTTP."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import httpx

from benchmarks.sizes import ROOT
from server.bench.client import HttpAsker
from server.bench.types import Api, BenchError, Exchange, Outcome, Piece, Question
from server.os_process import computing_environment

START_S = 600.0
END_S = 10.0
"""For a clean end; LitServe does not always find one."""
POLL_S = 0.2
TIMEOUT_S = 3600.0
"""Of one request: nothing is given up, for what takes long is what is measured."""
TAIL_CHARS = 3000


class Served:
    """A server from start to end. command: of Python, after `-m`. ready: the path that says 200 once it is.

    python, environment: this command's own unless given.
    Its log goes to a temporary file, which the error quotes where the server does not start.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        ready: str,
        stdout: int | None = None,
        *,
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._ready = ready
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
        self.process = subprocess.Popen(
            [python, "-m", *command],
            stdout=self._log if stdout is None else stdout,
            stderr=self._log,
            env=own_environment() if environment is None else environment,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        try:
            self._wait_until_ready()
        except BaseException:
            self._signal(signal.SIGKILL)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.resume()
        self.process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(END_S)
        self._signal(signal.SIGKILL)
        self.process.wait()
        self._log.close()

    def pause(self) -> None:
        """Stand still: LitServe polls its queue, which would take from who is measured meanwhile."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Go on."""
        self._signal(signal.SIGCONT)

    @contextlib.contextmanager
    def awake(self) -> Iterator[None]:
        """Go on inside the block alone."""
        self.resume()
        try:
            yield
        finally:
            self.pause()

    def _signal(self, number: signal.Signals) -> None:
        """To all processes of the server that are left."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(self.url + self._ready).status_code == httpx.codes.OK:
                    return
            time.sleep(POLL_S)
        self._log.seek(0)
        raise BenchError(f"no server:\n{self._log.read().decode(errors='replace')[-TAIL_CHARS:]}")


def own_environment() -> dict[str, str]:
    """Of a child that computes as our engine does, and whose `-m` finds the benchmarks."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**computing_environment(), "PYTHONPATH": path}


def serve_wavllm(model: Path) -> Served:
    """`wavllm serve` with its defaults but for the time that requests may take."""
    port = free_port()
    flags = {"model": model, "host": "127.0.0.1", "http-port": port, "grpc-port": free_port()}
    flags |= {"metrics-port": 0, "drain-delay": 0, "device": "cpu", "dtype": "float32"}
    flags |= {"queue-timeout": TIMEOUT_S, "request-timeout": TIMEOUT_S, "engine-timeout": TIMEOUT_S}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    return Served(["server.cli", "serve", *words], port, "/readyz")


def serve_litserve(model: Path, max_batch: int, wait_s: float) -> Served:
    """LitServe around the script. Raises BenchError where litserve is not installed."""
    if importlib.util.find_spec("litserve") is None:
        raise BenchError("litserve is not installed: run `make bench-env`")
    port = free_port()
    flags = ["--model", str(model), "--port", str(port), "--max-batch", str(max_batch)]
    flags += ["--wait-ms", str(1e3 * wait_s)]
    return Served(["benchmarks.peers.litserve_server", *flags], port, "/health")


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class WavllmSide(HttpAsker):
    """A running `wavllm serve`."""

    def __init__(self, url: str, num_tokens: int) -> None:
        super().__init__(url, Api.SPEECH, None, timeout_s=TIMEOUT_S)
        self.num_tokens = num_tokens

    def take(self, questions: Sequence[Question]) -> None:
        """Make the bodies."""
        self.prepare(questions, model=None, max_tokens=self.num_tokens)


class PostingSide(ABC):
    """A running server that is asked by POST, with bodies made beforehand; close it with `aclose`."""

    path: ClassVar[str]

    def __init__(self, url: str, num_tokens: int) -> None:
        self.num_tokens = num_tokens
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits)
        self._bodies: dict[str, bytes] = {}

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def take(self, questions: Sequence[Question]) -> None:
        """Make the bodies."""
        self._bodies = {question.id: self._body(question) for question in questions}

    async def ask(self, question: Question, leave_after: int | None = None) -> Exchange:
        """Ask once. `_outcome` judges an answer by its pieces."""
        headers, body = {"content-type": "application/json"}, self._bodies[question.id]
        async with self._client.stream("POST", self.path, content=body, headers=headers) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
                return Exchange(Outcome.FAILED, time.perf_counter(), detail=response.text)
            read = [self._piece(line) async for line in response.aiter_lines()]
        pieces = tuple(piece for piece in read if piece is not None)
        return Exchange(self._outcome(pieces), time.perf_counter(), pieces, finish_reason="length")

    @abstractmethod
    def _body(self, question: Question) -> bytes:
        """JSON."""

    @abstractmethod
    def _piece(self, line: str) -> Piece | None:
        """What one line of the stream, read now, brought; most bring something."""

    def _outcome(self, pieces: Sequence[Piece]) -> Outcome:
        """Of a stream that was read to its end."""
        return Outcome.OK


class LitServeSide(PostingSide):
    """A running `litserve_server`."""

    path = "/predict"

    def _body(self, question: Question) -> bytes:
        audio = base64.b64encode(question.clip.data).decode()
        fields = {"audio": audio, "prompt": question.prompt, "max_tokens": self.num_tokens}
        return json.dumps(fields).encode()

    def _piece(self, line: str) -> Piece:
        """One token."""
        said = json.loads(line)
        return Piece(time.perf_counter(), said["text"], (said["token_id"],))

    def _outcome(self, pieces: Sequence[Piece]) -> Outcome:
        """A stream that ends early is a failure; LitServe says no more than that."""
        return Outcome.OK if len(pieces) == self.num_tokens else Outcome.FAILED
