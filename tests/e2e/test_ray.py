"""Two replicas under a local Ray Serve, seen as a client of the plain server does.

Slow: Ray starts some ten processes. In the order of the file, on one Ray; the last tests take replicas away.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
import pytest
from e2e_client import (
    CASES,
    CHAT,
    chat_request,
    clip_of,
    form,
    grpc_refusal,
    ids_of,
    read_sse,
    refusal,
    upload_of,
)
from prometheus_client.parser import text_string_to_metric_families
from random_models import make_endless
from ray_cluster import RayCluster, wait_for
from server_process import ServerProcess

from server.pb import speech_pb2 as pb
from server.pb.speech_pb2_grpc import SpeechChatStub

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CLIP = clip_of(CASES[0])
PROMPTS = ("What is said?", "Translate the audio clip into German.", "Who speaks?")
NUM_TOKENS = 24
NUM_PLACES = 2
"""Of each replica; as many requests again may wait in the proxy."""
SETTINGS = {"audio_workers": 1, "sse_keepalive": 1, "engine_timeout": 600}
"""Engines that are made to stand still are not taken for hung."""
OPTIONS = {
    "num_replicas": 2,
    "autoscaling_config": None,
    "ray_actor_options": {"num_cpus": 1},
    "max_ongoing_requests": NUM_PLACES,
    "max_queued_requests": NUM_PLACES,
    "health_check_period_s": 5.0,
    "health_check_timeout_s": 60.0,
}
TIMEOUT_S = 240
LONG_TOKENS = 500
"""So many are under way for longer than a test takes to make the engines stand still."""


class Asking:
    """A client of one server: all ways to ask, each with the answer's token ids."""

    def __init__(self, url: str, grpc_target: str) -> None:
        self.url = url
        self._target = grpc_target
        self._exits = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Asking:
        self.http = await self._exits.enter_async_context(
            httpx.AsyncClient(timeout=TIMEOUT_S, base_url=self.url)
        )
        channel = await self._exits.enter_async_context(grpc.aio.insecure_channel(self._target))
        self.stub = SpeechChatStub(channel)
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self._exits.aclose()

    async def whole_response(self, prompt: str) -> httpx.Response:
        return await self.http.post(CHAT, **asked(prompt))

    async def whole(self, prompt: str) -> list[int]:
        response = await self.whole_response(prompt)
        assert response.status_code == 200, response.text
        assert len(response.headers.get_list("x-request-id")) == 1
        return list(response.json()["choices"][0]["token_ids"])

    async def sse(self, prompt: str) -> list[int]:
        ids, error = read_sse((await self.http.post(CHAT, **asked(prompt, stream="true"))).text)
        assert error == {}
        return ids

    async def chat(self, prompt: str) -> list[int]:
        request = chat_request(prompt, CLIP, NUM_TOKENS)
        return list((await self.stub.Chat(request, timeout=TIMEOUT_S)).token_ids)

    async def chat_stream(self, prompt: str) -> list[int]:
        return await read(self.stub.ChatStream(chat_request(prompt, CLIP, NUM_TOKENS), timeout=TIMEOUT_S))

    async def chat_upload(self, prompt: str) -> list[int]:
        messages = upload_of(prompt, CLIP, NUM_TOKENS, size=2**16)
        return await read(self.stub.ChatUpload(messages, timeout=TIMEOUT_S))


async def read(call: AsyncIterator[pb.ChatEvent]) -> list[int]:
    return ids_of([event async for event in call])


def asked(prompt: str, **fields: str) -> dict[str, Any]:
    return form(prompt, CLIP, **{"max_tokens": str(NUM_TOKENS), **fields})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answers go on to their last allowed token."""
    return make_endless(tmp_path_factory.mktemp("endless") / "model", layers=16)


@pytest.fixture(scope="module")
def answers(model: Path) -> dict[str, list[int]]:
    """What the plain server answers."""

    async def ask_all(server: ServerProcess) -> dict[str, list[int]]:
        async with Asking(server.url, server.grpc_target) as client:
            return {prompt: await client.whole(prompt) for prompt in PROMPTS}

    with ServerProcess(model, "--audio-workers", "1") as server:
        return asyncio.run(ask_all(server))


@pytest.fixture
def long() -> dict[str, Any]:
    """The form of a stream that does not end soon."""
    return asked("Go on.", stream="true", max_tokens=str(LONG_TOKENS))


@pytest.fixture(scope="module")
def cluster(model: Path, answers: dict[str, list[int]]) -> Iterator[RayCluster]:
    """After the plain server has gone, for both would take long to start beside each other."""
    running = RayCluster({**SETTINGS, "model": str(model)}, OPTIONS)
    with running:
        yield running
    assert not running.killed, "Ray left processes behind"
    for port in running.ports.values():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))


@pytest.fixture
async def client(cluster: RayCluster) -> AsyncIterator[Asking]:
    async with Asking(cluster.url, cluster.grpc_target) as asking:
        yield asking


@contextlib.contextmanager
def standing_still(engines: list[psutil.Process]) -> Iterator[None]:
    """Nobody's answer goes on inside the block."""
    for engine in engines:
        engine.suspend()
    try:
        yield
    finally:
        for engine in engines:
            with contextlib.suppress(psutil.NoSuchProcess):
                engine.resume()


async def running(cluster: RayCluster, count: int) -> dict[int, int]:
    """Wait until so many requests run; how many in which replica."""
    await asyncio.to_thread(
        wait_for, lambda: sum(cluster.replicas().values()) == count, f"not {count} requests run"
    )
    return await asyncio.to_thread(cluster.replicas)


async def test_answers_equal_the_plain_servers(client: Asking, answers: dict[str, list[int]]) -> None:
    for prompt, expected in answers.items():
        assert expected
        for ask in (client.whole, client.sse, client.chat, client.chat_stream, client.chat_upload):
            assert await ask(prompt) == expected, ask


async def test_refusals_read_like_the_plain_servers(client: Asking) -> None:
    bad = await client.http.post(CHAT, **form("Hi", b"no audio"))
    assert refusal(bad) == (415, "unsupported_audio", "audio")
    assert refusal(await client.http.get("/nowhere"))[:2] == (404, "not_found")
    request = chat_request("Hi", b"no audio")
    stream = client.stub.ChatStream(request, timeout=TIMEOUT_S)
    for call in (client.stub.Chat(request, timeout=TIMEOUT_S), read(stream)):
        with pytest.raises(grpc.RpcError) as error:
            await call
        assert grpc_refusal(error.value) == (grpc.StatusCode.INVALID_ARGUMENT, "unsupported_audio")


async def test_the_model_and_health(client: Asking) -> None:
    (model,) = (await client.http.get("/v1/models")).json()["data"]
    assert (await client.stub.GetModelInfo(pb.GetModelInfoRequest())).id == model["id"]
    assert (await client.http.get("/readyz")).json() == {"status": "ready"}
    assert (await client.http.get("/-/healthz")).status_code == 200


async def test_streams_come_as_they_are_made(
    client: Asking, cluster: RayCluster, long: dict[str, Any]
) -> None:
    """Once text has come the engines stand still: keep-alives come all the same, the rest comes after."""
    engines = await asyncio.to_thread(cluster.engines)
    call = client.stub.ChatStream(chat_request("Go on.", CLIP, LONG_TOKENS), timeout=TIMEOUT_S)
    events = [await anext(aiter(call)) for _ in range(3)]
    async with client.http.stream("POST", CHAT, **long) as response:
        pieces = response.aiter_text()
        text = await until_seen(pieces, '"token_ids":[')
        with standing_still(engines):
            text += await until_seen(pieces, ": keep-alive")
        text += await until_seen(pieces, "[DONE]")
    ids, error = read_sse(without_comments(text))
    assert (len(ids), error) == (LONG_TOKENS, {})
    assert ids_of(events + [event async for event in call]) == ids


async def until_seen(pieces: AsyncIterator[str], what: str) -> str:
    """What comes up to the piece that holds this."""
    text = ""
    while what not in text:
        text += await anext(pieces)
    return text


async def test_a_client_that_leaves_gives_its_place_back(client: Asking, cluster: RayCluster) -> None:
    with standing_still(await asyncio.to_thread(cluster.engines)):
        stream = client.stub.ChatStream(chat_request("Hi", CLIP), timeout=TIMEOUT_S)
        whole = asyncio.create_task(client.http.post(CHAT, **asked("Hi")))
        await running(cluster, 2)
        stream.cancel()
        whole.cancel()
        await running(cluster, 0)


async def test_what_does_not_fit_is_refused_as_overload(client: Asking, cluster: RayCluster) -> None:
    """Both replicas full, then the proxy's queue: the next one is told to come again."""
    with standing_still(await asyncio.to_thread(cluster.engines)):
        tasks = [asyncio.create_task(client.whole(PROMPTS[0])) for _ in range(NUM_PLACES)]
        await running(cluster, len(tasks))
        tasks += [asyncio.create_task(client.whole(PROMPTS[0])) for _ in range(NUM_PLACES)]
        await running(cluster, len(tasks))
        tasks += [asyncio.create_task(client.whole(PROMPTS[0])) for _ in range(NUM_PLACES)]
        await asyncio.sleep(2)
        late = await client.http.post(CHAT, **asked(PROMPTS[0]))
        assert refusal(late) == (503, "overloaded", None)
        assert late.headers["retry-after"] == "1"
        with pytest.raises(grpc.RpcError) as error:
            await client.chat(PROMPTS[0])
        assert grpc_refusal(error.value) == (grpc.StatusCode.UNAVAILABLE, "overloaded")
        assert (await client.http.get("/-/healthz")).status_code == 200
    assert all(await asyncio.gather(*tasks))


async def test_metrics_come_out_of_rays_exporter(client: Asking, cluster: RayCluster) -> None:
    """Of both replicas, under our names behind Ray's prefix."""

    def accepted() -> dict[str, float]:
        text = httpx.get(f"http://127.0.0.1:{cluster.ports['metrics']}/metrics", timeout=30).text
        samples = (s for family in text_string_to_metric_families(text) for s in family.samples)
        name = "ray_wavllm_requests_accepted_total"
        return {s.labels["replica"]: s.value for s in samples if s.name == name}

    await client.whole(PROMPTS[0])
    await asyncio.to_thread(
        wait_for, lambda: len(found := accepted()) == 2 and sum(found.values()) > 0, "no metrics"
    )


async def test_a_killed_replica_costs_its_own_requests_alone(
    client: Asking, cluster: RayCluster, answers: dict[str, list[int]], long: dict[str, Any]
) -> None:
    """One of its requests is in mid-stream, one has not been accepted; two run on the other replica."""
    prompt, expected = next(iter(answers.items()))
    engines = await asyncio.to_thread(cluster.engines)
    async with client.http.stream("POST", CHAT, **long) as streamed:
        pieces = streamed.aiter_text()
        text = await until_seen(pieces, '"token_ids":[')
        with standing_still(engines):
            (victim,) = [pid for pid, count in (await running(cluster, 1)).items() if count]
            asks = (client.chat, client.chat_stream, client.whole_response)
            tasks = [asyncio.create_task(ask(prompt)) for ask in asks]
            assert set((await running(cluster, 4)).values()) == {2}
            children = psutil.Process(victim).children()
            psutil.Process(victim).kill()
            _, alive = await asyncio.to_thread(psutil.wait_procs, children, 10)
            assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]
        text += "".join([piece async for piece in pieces])
    ids, error = read_sse(without_comments(text))
    assert ids
    assert error["code"] == "engine_error"
    await asyncio.gather(*tasks, return_exceptions=True)
    lost = [task for task in tasks if not is_whole(task, expected)]
    assert len(lost) == 1
    check_lost(lost[0])
    assert await client.whole(prompt) == expected
    await asyncio.to_thread(wait_for, lambda: len(cluster.replicas()) == 2, "not replaced", 300)
    assert victim not in await asyncio.to_thread(cluster.replicas)


def is_whole(task: asyncio.Task[Any], expected: list[int]) -> bool:
    """Answered, and rightly so."""
    if task.exception() is not None:
        return False
    result = task.result()
    if not isinstance(result, httpx.Response):
        assert result == expected
        return True
    return result.status_code == 200 and result.json()["choices"][0]["token_ids"] == expected


def check_lost(task: asyncio.Task[Any]) -> None:
    """Ended with a clean error."""
    error = task.exception()
    if isinstance(error, grpc.RpcError):
        assert grpc_refusal(error) == (grpc.StatusCode.INTERNAL, "engine_error")
        return
    assert error is None, error
    assert refusal(task.result()) == (500, "engine_error", None)


def without_comments(text: str) -> str:
    """A stream without its keep-alives, as a client reads it."""
    return "\n\n".join(block for block in text.split("\n\n") if not block.startswith(":"))


async def test_a_replica_that_is_taken_away_answers_what_it_has(
    client: Asking, cluster: RayCluster, answers: dict[str, list[int]]
) -> None:
    prompt, expected = next(iter(answers.items()))
    with standing_still(await asyncio.to_thread(cluster.engines)):
        tasks = [asyncio.create_task(ask(prompt)) for ask in (client.whole, client.chat, client.chat_stream)]
        tasks.append(asyncio.create_task(client.sse(prompt)))
        share = await running(cluster, len(tasks))
        await asyncio.to_thread(cluster.redeploy, num_replicas=1)
        await asyncio.sleep(3)
    assert await asyncio.gather(*tasks) == [expected] * len(tasks)
    await asyncio.to_thread(wait_for, lambda: len(cluster.replicas()) == 1, "not taken away")
    assert set(await asyncio.to_thread(cluster.replicas)) < set(share)
    assert await client.whole(prompt) == expected


async def test_a_replica_is_added_under_load(client: Asking, cluster: RayCluster) -> None:
    """Autoscaling counts ongoing requests; the engine stands still, so they stay."""
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 1, "upscale_delay_s": 0}
    scaling |= {"metrics_interval_s": 1, "look_back_period_s": 2}
    await asyncio.to_thread(cluster.redeploy, wait=True, num_replicas=None, autoscaling_config=scaling)
    with standing_still(await asyncio.to_thread(cluster.engines)):
        tasks = [asyncio.create_task(client.whole(PROMPTS[0])) for _ in range(NUM_PLACES)]
        await asyncio.to_thread(wait_for, lambda: len(cluster.replicas()) == 2, "no second replica", 300)
    assert all(await asyncio.gather(*tasks))
