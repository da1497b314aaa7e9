"""Two real servers behind the shipped nginx and HAProxy files, over REST, server-sent events and gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from audio_samples import wav
from balancers import BALANCERS, SHORT_SILENCE, Balancer, Replica, free_ports, two_replicas
from e2e_client import (
    CASES,
    CHAT,
    HTTP,
    SHORT,
    ask_grpc,
    chat_request,
    check_error,
    form,
    golden_form,
    golden_ids,
    grpc_refusal,
    load_of,
    metrics_of,
    read_sse,
    refusal,
    until,
)
from random_models import make_endless
from server_process import ServerProcess

from server.pb.speech_pb2_grpc import SpeechChatStub

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

CLIP = wav(0.5)
LONG_CLIP = wav(20.0)
"""640 KB: more than a balancer keeps in one buffer."""
METHODS = ("Chat", "ChatStream", "ChatUpload")
NOTICED_S = 10.0
"""Far more than a balancer may take to see that a replica came or went."""
WAIT_S = 15.0
PATIENT = ("--engine-timeout", "300")
"""On a busy machine a step may take a minute; that is not what is tested here."""
ONE_AT_A_TIME = ("--max-batch-size", "1", "--queue-timeout", "120", "--dtype", "float64", *PATIENT)
"""float64, for with random weights float32's rounding decides which token is the next."""

Pair = tuple[Replica, Replica]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two servers for the tests that do not stop them; a long answer takes some seconds."""
    model = make_endless(tmp_path_factory.mktemp("endless") / "model", layers=16)
    with two_replicas(model, *ONE_AT_A_TIME) as replicas:
        yield replicas


@pytest.fixture(params=BALANCERS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each balancer in turn."""
    return str(request.param)


@pytest.fixture
def balancer(kind: str, pair: Pair, tmp_path: Path) -> Iterator[Balancer]:
    with BALANCERS[kind](tmp_path / kind, pair) as running:
        yield running


def accepted_by(replica: Replica) -> float:
    """Requests that this replica took since it was started."""
    return metrics_of(replica.server)["wavllm_requests_accepted_total"]


def engine_of(server: ServerProcess) -> psutil.Process:
    """The engine's process."""
    children = psutil.Process(server.process.pid).children()
    (engine,) = [child for child in children if "server.audio_worker" not in child.cmdline()]
    return engine


async def test_every_transport_says_the_same(balancer: Balancer, pair: Pair) -> None:
    """As without a balancer, a large clip and the refusals included."""
    direct = await asyncio.to_thread(HTTP.post, pair[0].server.url + CHAT, **golden_form(SHORT))
    wanted = direct.json()["choices"][0]["token_ids"]
    assert len(wanted) == 48
    async with (
        httpx.AsyncClient(timeout=60, base_url=balancer.url) as client,
        grpc.aio.insecure_channel(balancer.grpc_target) as channel,
    ):
        stub = SpeechChatStub(channel)
        whole = await client.post(CHAT, **golden_form(SHORT))
        assert whole.json()["choices"][0]["token_ids"] == wanted
        streamed = await client.post(CHAT, **golden_form(SHORT, stream="true"))
        assert read_sse(streamed.text) == (wanted, {})
        for method in METHODS:
            assert await ask_grpc(stub, method, SHORT) == wanted

        large = await client.post(CHAT, **form("Hi", LONG_CLIP, max_tokens="2"))
        assert large.json()["audio"]["duration_s"] == 20
        answer = await stub.Chat(chat_request("Hi", LONG_CLIP, 2))
        assert answer.audio.duration_s == 20

        bad = await client.post(CHAT, **form("Hi", b"no audio at all"), headers={"x-request-id": "mine"})
        assert refusal(bad) == (415, "unsupported_audio", "audio")
        assert bad.headers["x-request-id"] == "mine"
        with pytest.raises(grpc.RpcError) as error:
            await stub.Chat(chat_request("Hi", b"no audio at all"))
        assert grpc_refusal(error.value) == (grpc.StatusCode.INVALID_ARGUMENT, "unsupported_audio")


async def test_the_calls_of_one_channel_spread(balancer: Balancer, pair: Pair) -> None:
    before = [accepted_by(replica) for replica in pair]
    async with grpc.aio.insecure_channel(balancer.grpc_target) as channel:
        stub = SpeechChatStub(channel)
        for _ in range(20):
            await stub.Chat(chat_request("Hi", CLIP, 1), timeout=60)
    grown = [accepted_by(replica) - old for replica, old in zip(pair, before, strict=True)]
    assert sum(grown) == 20
    assert min(grown) >= 1


class Waiters:
    """Both engines stand still in the middle of an answer, and behind it on each wait requests."""

    def __init__(self, pair: Pair) -> None:
        self._servers = [replica.server for replica in pair]
        self._engines = [engine_of(server) for server in self._servers]

    async def __aenter__(self) -> Waiters:
        self._client = httpx.AsyncClient(timeout=120)
        self._ahead = [asyncio.create_task(self._hold(server)) for server in self._servers]
        for server in self._servers:
            await self.until_waiting(server, running=1, waiting=0)
        return self

    async def _hold(self, server: ServerProcess) -> None:
        response = await self._client.post(server.url + CHAT, **form("Go on.", CLIP, max_tokens="400"))
        assert response.status_code == 200

    async def until_waiting(self, server: ServerProcess, running: int, waiting: int) -> None:
        """Until so many requests are there."""
        wanted = {"num_requests_running": running, "num_requests_waiting": waiting}
        await asyncio.to_thread(
            until, lambda: wanted.items() <= load_of(server).items(), f"{wanted} is not", 30
        )

    def suspend(self) -> None:
        """No token from now on."""
        for engine in self._engines:
            engine.suspend()

    def resume(self) -> None:
        """Let the answers ahead go, so that the next ones begin. Idempotent."""
        for task in self._ahead:
            task.cancel()
        for engine in self._engines:
            engine.resume()

    async def __aexit__(self, *exception: object) -> None:
        self.resume()
        await asyncio.gather(*self._ahead, return_exceptions=True)
        await self._client.aclose()


class TimedStream:
    """A streamed request and when its pieces came."""

    def __init__(self, url: str) -> None:
        self.began = asyncio.Event()
        self.comments: list[float] = []
        self.text = ""
        self.task = asyncio.create_task(self._run(url))

    async def _run(self, url: str) -> None:
        given = form("Hi", CLIP, max_tokens="8", stream="true")
        async with httpx.AsyncClient(timeout=60) as client, client.stream("POST", url, **given) as response:
            assert response.status_code == 200
            async for piece in response.aiter_text():
                if '"role"' in piece:
                    self.began.set()
                if ": keep-alive" in piece:
                    self.comments.append(time.monotonic())
                self.text += piece


async def test_a_stream_outlasts_a_short_idle_timeout(kind: str, pair: Pair, tmp_path: Path) -> None:
    """15 s without a token: keep-alives pass at once and hold it open; the rest has the shipped timeouts."""
    shipped, impatient = (tmp_path / "shipped"), (tmp_path / "impatient")
    start = BALANCERS[kind]
    with start(shipped, pair) as patient, start(impatient, pair, SHORT_SILENCE[kind]) as short:
        await check_waits(patient, short, pair)


async def check_waits(patient: Balancer, short: Balancer, pair: Pair) -> None:
    """short: it ends a REST request after 5 s of silence."""
    async with (
        Waiters(pair) as waiters,
        httpx.AsyncClient(timeout=120) as client,
        grpc.aio.insecure_channel(patient.grpc_target) as channel,
    ):
        stream = TimedStream(short.url + CHAT)
        await asyncio.wait_for(stream.began.wait(), 30)
        waiters.suspend()
        calls: list[Awaitable[Any]] = [
            client.post(patient.url + CHAT, **form("Hi", CLIP, max_tokens="8")),
            SpeechChatStub(channel).Chat(chat_request("Hi", CLIP, 8)),
            event_ids(SpeechChatStub(channel).ChatStream(chat_request("Hi", CLIP, 8))),
        ]
        tasks = [asyncio.ensure_future(call) for call in calls]
        cut = asyncio.create_task(client.post(short.url + CHAT, **form("Hi", CLIP, max_tokens="8")))
        await asyncio.to_thread(until, lambda: total_waiting(pair) == 5, "not all wait", 30)
        begin = time.monotonic()
        assert (await cut).status_code == 504, "the timeout that is to be outlasted is not in force"
        await asyncio.sleep(begin + WAIT_S - time.monotonic())
        assert not any(task.done() for task in (stream.task, *tasks))
        during = [at for at in stream.comments if at >= begin]
        assert len(during) >= 4, "keep-alives were held back"
        assert max(b - a for a, b in itertools.pairwise(during)) < 5
        waiters.resume()
        whole, unary, streamed = await asyncio.gather(*tasks)
        await stream.task
    wanted = whole.json()["choices"][0]["token_ids"]
    assert len(wanted) == 8
    assert list(unary.token_ids) == streamed == wanted
    assert read_sse(stream.text) == (wanted, {})


def total_waiting(pair: Pair) -> int:
    """Requests that wait on either replica."""
    return sum(int(load_of(replica.server)["num_requests_waiting"]) for replica in pair)


async def event_ids(call: AsyncIterator[Any]) -> list[int]:
    """Token ids of a stream of events."""
    return [token async for event in call for token in event.delta.token_ids]


@dataclass(frozen=True)
class Pretended:
    """Ports on which no server of ours listens."""

    http_port: int
    grpc_port: int


async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ready, but silent to every question, and gone at once at the path /gone."""
    path = (await reader.readline()).split()[1:2]
    if path == [b"/readyz"]:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    elif path != [b"/gone"]:
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await reader.read()
    writer.close()


OwnRefusal = tuple[int, str, httpx.Headers]
"""Status, code of the error, headers."""


async def own_refusal(balancer: Balancer, method: str = "POST", path: str = CHAT) -> OwnRefusal:
    """What the balancer itself says."""
    question = form("Hi", CLIP) if method == "POST" else {}
    async with httpx.AsyncClient(timeout=60, base_url=balancer.url) as client:
        response = await client.request(method, path, **question)
    assert response.headers["content-type"] == "application/json"
    return response.status_code, check_error(response.json())["code"], response.headers


async def test_no_replica_at_all(kind: str, tmp_path: Path) -> None:
    replicas = Pretended(*free_ports(2)), Pretended(*free_ports(2))
    with BALANCERS[kind](tmp_path / kind, replicas) as balancer:
        status, code, headers = await own_refusal(balancer)
    assert (status, code, headers["retry-after"]) == (503, "not_ready", "1")


async def test_replicas_that_say_nothing_or_leave(kind: str, tmp_path: Path) -> None:
    servers = [await asyncio.start_server(never_answer, "127.0.0.1", 0) for _ in range(2)]
    first, second = (Pretended(server.sockets[0].getsockname()[1], *free_ports(1)) for server in servers)
    with BALANCERS[kind](tmp_path / kind, (first, second), SHORT_SILENCE[kind]) as balancer:
        status, code, headers = await own_refusal(balancer)
        assert (status, code, headers["x-should-retry"]) == (504, "deadline_exceeded", "false")
        status, code, _ = await own_refusal(balancer, "GET", "/gone")
    assert (status, code) == {"nginx": (503, "not_ready"), "haproxy": (502, "internal_error")}[kind]
    for server in servers:
        server.close()


async def test_haproxy_sends_less_to_a_replica_with_a_queue(pair: Pair, tmp_path: Path) -> None:
    """The queue came past the balancer, so only GET /v1/load can tell of it."""
    busy = pair[0].server
    with BALANCERS["haproxy"](tmp_path / "haproxy", pair) as balancer:
        async with Waiters(pair) as waiters, httpx.AsyncClient(timeout=120) as client:
            waiters.suspend()
            posts = [client.post(busy.url + CHAT, **form("Hi", CLIP, max_tokens="1")) for _ in range(15)]
            tasks = [asyncio.create_task(post) for post in posts]
            await waiters.until_waiting(busy, running=1, waiting=15)
            await asyncio.sleep(3)
            loads = [(await client.get(f"{balancer.url}/v1/load")).json() for _ in range(100)]
            waiters.resume()
            assert {(await task).status_code for task in tasks} == {200}
    asked = Counter("busy" if load["num_requests_waiting"] else "idle" for load in loads)
    assert asked["busy"] < 25, "a seventeenth was expected, without weights a half"


async def test_a_draining_replica_gets_nothing_new(kind: str, golden_model: Path, tmp_path: Path) -> None:
    """It still takes requests, but readiness has failed; once it is back it gets its share again."""
    with (
        two_replicas(golden_model, "--drain-delay", "60", *PATIENT) as pair,
        BALANCERS[kind](tmp_path / kind, pair) as balancer,
    ):
        first, second = pair
        first.server.process.send_signal(signal.SIGTERM)
        await asyncio.sleep(4)  # --drain-delay is 5 by default: by then it must be out
        before = accepted_by(first), accepted_by(second)
        await ask_some(balancer, 10)
        assert accepted_by(first) == before[0]
        assert accepted_by(second) == before[1] + 20
        direct = await asyncio.to_thread(HTTP.post, first.server.url + CHAT, **golden_form(SHORT))
        assert direct.status_code == 200, "it was not draining, it was gone"

        assert first.server.stop() == 0  # the second signal
        await ask_some(balancer, 2)
        first.start_again()
        await until_it_serves(first, balancer)


async def ask_some(balancer: Balancer, count: int) -> None:
    """So many golden questions over REST and as many over gRPC, one after the other."""
    async with (
        httpx.AsyncClient(timeout=60) as client,
        grpc.aio.insecure_channel(balancer.grpc_target) as channel,
    ):
        for _ in range(count):
            response = await client.post(balancer.url + CHAT, **golden_form(SHORT))
            assert response.json()["choices"][0]["token_ids"] == golden_ids(SHORT)
            assert await ask_grpc(SpeechChatStub(channel), "ChatStream", SHORT) == golden_ids(SHORT)


async def until_it_serves(replica: Replica, balancer: Balancer) -> None:
    """Until the balancer sends requests to this replica again."""
    deadline = time.monotonic() + NOTICED_S
    while accepted_by(replica) == 0:
        assert time.monotonic() < deadline, "the balancer does not come back to it"
        await ask_some(balancer, 1)


class Load:
    """Clients that ask without a pause, each in its own way, until they are told to stop."""

    def __init__(self, balancer: Balancer) -> None:
        self._balancer = balancer
        self._stopped = False
        self.answered: Counter[str] = Counter()

    async def __aenter__(self) -> Load:
        self._client = httpx.AsyncClient(timeout=120, base_url=self._balancer.url)
        self._channel = grpc.aio.insecure_channel(self._balancer.grpc_target)
        self._stub = SpeechChatStub(self._channel)
        asks = {"rest": self._rest, "sse": self._sse, "long": self._long}
        asks |= {method: self._grpc(method) for method in METHODS}
        self._tasks = [asyncio.create_task(self._repeat(name, ask)) for name, ask in asks.items()]
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._stopped = True
        try:
            await asyncio.gather(*self._tasks)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            await self._channel.close()
            await self._client.aclose()

    async def _repeat(self, name: str, ask: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        while not self._stopped:
            await ask(CASES[self.answered[name] % len(CASES)])
            self.answered[name] += 1

    async def _rest(self, case: dict[str, Any]) -> None:
        response = await self._client.post(CHAT, **golden_form(case))
        assert response.status_code == 200, response.text
        assert response.json()["choices"][0]["token_ids"] == golden_ids(case)

    async def _sse(self, case: dict[str, Any]) -> None:
        response = await self._client.post(CHAT, **golden_form(case, stream="true"))
        assert response.status_code == 200, response.text
        assert read_sse(response.text) == (golden_ids(case), {})

    async def _long(self, case: dict[str, Any]) -> None:
        """More than a balancer can keep to send it again."""
        response = await self._client.post(CHAT, **form(case["prompt"], LONG_CLIP, max_tokens="2"))
        assert response.status_code == 200, response.text

    def _grpc(self, method: str) -> Callable[[dict[str, Any]], Awaitable[None]]:
        async def ask(case: dict[str, Any]) -> None:
            assert await ask_grpc(self._stub, method, case) == golden_ids(case)

        return ask


async def test_a_rolling_restart_loses_nothing(kind: str, golden_model: Path, tmp_path: Path) -> None:
    """With the drain of the defaults, under load over every transport, each replica once."""
    with (
        two_replicas(golden_model, "--drain-delay", "5", "--shutdown-timeout", "60", *PATIENT) as pair,
        BALANCERS[kind](tmp_path / kind, pair) as balancer,
    ):
        async with Load(balancer) as load:
            for replica in pair:
                before = load.answered.copy()
                assert await asyncio.to_thread(replica.server.stop) == 0
                await asyncio.to_thread(replica.start_again)
                await until_it_serves(replica, balancer)
                assert all(load.answered[name] > before[name] for name in ("rest", "sse", *METHODS))
        for replica in pair:
            assert accepted_by(replica) > 0
            counted = metrics_of(replica.server)
            assert not [name for name, value in counted.items() if "requests_failed_total" in name and value]
