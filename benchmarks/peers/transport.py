"""What HTTP and gRPC add to a request on an idle server: the client's time less the engine's own."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from subprocess import PIPE

import grpc
import numpy as np

from benchmarks import record
from benchmarks.peers.arms import note
from benchmarks.peers.questions import Shape
from benchmarks.peers.served import Served, free_port
from benchmarks.peers.targets import GRPC_ADDS, HTTP_ADDS, Outcome
from benchmarks.peers.workloads import REPETITIONS, maker, outcome
from server.bench.client import BODIES, PATHS
from server.bench.stream import DONE
from server.bench.types import Api, BenchError, Question
from server.pb import speech_pb2 as pb
from server.pb.speech_pb2_grpc import SpeechChatStub

SHAPE = Shape(answer_tokens=8)
NUM_REQUESTS = 20
"""Of one repetition and transport; their median is the repetition's figure."""

Send = Callable[[], None]
"""One request, from its first byte to the answer's last."""


@dataclass(frozen=True, slots=True)
class Inside:
    """What the server tells of one request, in ms."""

    decode_ms: float
    engine_ms: float


@dataclass(frozen=True, slots=True)
class Idle:
    """One request. added_ms: all that is not the engine's. decode_ms: of it, reading the audio file."""

    added_ms: float
    decode_ms: float


@dataclass(slots=True)
class Transport:
    """Sends the same question again and again. told: what the server says of each, in order."""

    send: Send
    told: Iterator[Inside]
    done: list[list[Idle]] = field(default_factory=list)

    def measure(self) -> float:
        """Median of what is added to a request, in ms."""
        self.done.append([self._one() for _ in range(NUM_REQUESTS)])
        return medians(self.done, "added_ms")[-1]

    def _one(self) -> Idle:
        begin = time.perf_counter()
        self.send()
        elapsed_ms = 1e3 * (time.perf_counter() - begin)
        inside = next(self.told)
        return Idle(elapsed_ms - inside.engine_ms, inside.decode_ms)


def medians(done: list[list[Idle]], name: str) -> list[float]:
    """The median of a field in each repetition."""
    return [float(np.median([attrgetter(name)(one) for one in some])) for some in done]


def transport(model: Path, repetitions: int = REPETITIONS, shape: Shape = SHAPE) -> Outcome:
    """One question over and over, its clip and prefix cached, streamed, with nobody else there.

    What is added includes reading the audio file; its share is in the row.
    """
    question = maker(model, shape).round(1)[0]
    http_port, grpc_port = free_port(), free_port()
    flags = ["--model", str(model), "--http-port", str(http_port), "--grpc-port", str(grpc_port)]
    with ExitStack() as stack:
        server = Served(["benchmarks.peers.timed_server", *flags], http_port, "/readyz", stdout=PIPE)
        told = tell_tales(stack.enter_context(server))
        client = stack.enter_context(closing(http.client.HTTPConnection("127.0.0.1", http_port)))
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{grpc_port}"))
        arms = {
            "http": Transport(http_sender(client, question, shape.answer_tokens), told),
            "grpc": Transport(grpc_sender(channel, question, shape.answer_tokens), told),
        }
        measured = _measure(arms, repetitions)
    reached = {HTTP_ADDS: record.Spread.of(measured["http"]), GRPC_ADDS: record.Spread.of(measured["grpc"])}
    decode = {name: record.Spread.of(medians(arm.done, "decode_ms")) for name, arm in arms.items()}
    return outcome("transport", model, shape, reached, {"of_it_decode_ms": decode})


def _measure(arms: dict[str, Transport], repetitions: int) -> dict[str, list[float]]:
    """After a repetition that warms caches and connections and does not count."""
    for name, arm in arms.items():
        note(f"warming up {name}: {arm.measure():.3g} ms")
        arm.done.clear()
    return record.alternate({name: arm.measure for name, arm in arms.items()}, repetitions)


def tell_tales(server: Served) -> Iterator[Inside]:
    """What the server tells of each request, in order."""
    if server.process.stdout is None:
        raise ValueError("the server's stdout is not a pipe")
    told: dict[str, float] = {}
    for line in server.process.stdout:
        told |= json.loads(line)
        if "engine_ms" in told:
            yield Inside(**told)
            told = {}


def http_sender(client: http.client.HTTPConnection, question: Question, num_tokens: int) -> Send:
    """A form, answered by server-sent events, on a connection that stays open."""
    body = BODIES[Api.SPEECH](question, None, num_tokens)
    headers = {"content-type": body.content_type}

    def send() -> None:
        client.request("POST", PATHS[Api.SPEECH], body.content, headers)
        response = client.getresponse()
        said = response.read().decode()
        if response.status != http.client.OK or not said.rstrip().endswith(DONE):
            raise BenchError(f"HTTP {response.status}: {said[-500:]}")

    return send


def grpc_sender(channel: grpc.Channel, question: Question, num_tokens: int) -> Send:
    """A message, answered by a stream of events. Raises grpc.RpcError for anything else."""
    stub = SpeechChatStub(channel)
    request = pb.ChatRequest(
        prompt=question.prompt,
        audio=pb.Audio(data=question.clip.data),
        generation=pb.Generation(max_tokens=num_tokens, return_token_ids=True),
    )

    def send() -> None:
        events = list(stub.ChatStream(request))
        if not events[-1].HasField("done"):
            raise BenchError("the stream ended without its last event")

    return send
