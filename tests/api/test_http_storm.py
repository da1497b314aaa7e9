"""The law of the counters under random clients: accepted = answered + failed + cancelled, always."""

from __future__ import annotations

import asyncio
import contextlib
import random

import pytest
from fakes import FakeDecoder, FakeEngine, eventually, make_service, wav_clip
from http_harness import LiveServer, check_law, counted, json_body, live_server, post, post_head
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from openai_harness import text_part, user

from server.errors import EngineError, ServerError
from server.service import ChatCommand


class RandomEngine(FakeEngine):
    """Pauses at random everywhere, and fails now and then."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng

    async def _pass(self, point):
        await asyncio.sleep(self.rng.choice((0, 0, 0.001, 0.004)))
        if self.rng.random() < 0.01:
            raise ZeroDivisionError
        self.error = EngineError("random") if self.rng.random() < 0.1 else None


class RandomDecoder(FakeDecoder):
    """Pauses at random."""

    async def decode(self, data):
        await asyncio.sleep(random.random() * 0.003)
        return await super().decode(data)


def transcription_post(streamed: bool) -> bytes:
    """A whole transcription request."""
    name = b'--B\r\ncontent-disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    fields = name % (b"stream", b"", b"true" if streamed else b"false")
    body = fields + name % (b"file", b'; filename="a"', wav_clip()) + b"--B--\r\n"
    kind = "multipart/form-data; boundary=B"
    return post_head(len(body), path="/v1/audio/transcriptions", kind=kind) + body


async def random_client(server: LiveServer, rng: random.Random) -> None:
    """One client that may send garbage, dribble, vanish at any byte, or read to the end."""
    client = await server.connect()
    body = rng.choice(
        [
            post(json_body(stream=rng.random() < 0.5, timeout_s=rng.choice((0.004, 0.02, 5.0)))),
            post(json_body(prompt=5)),
            post(json_body(audio={"data": "AAAA"})),
            post({"messages": [user()], "stream": rng.random() < 0.5}, path="/v1/chat/completions"),
            post({"messages": [user(text_part("Hi"))]}, path="/v1/chat/completions"),
            transcription_post(rng.random() < 0.5),
            post_head(10**9),
            post_head(50) + b"{}",
        ]
    )
    leave_at = rng.choice((None, None, rng.randrange(len(body))))
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        await client.send(body[:leave_at])
        await asyncio.sleep(rng.choice((0, 0.001, 0.005, 0.02)))
        if leave_at is None and rng.random() < 0.5:
            await asyncio.wait_for(client.head(), 0.05)
    client.vanish()


async def test_a_storm_of_random_clients_keeps_the_law():
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    service = make_service(RandomEngine(rng), RandomDecoder(), max_queued_requests=12)
    async with live_server(service) as server:
        for _ in range(25):
            batch = [asyncio.create_task(random_client(server, rng)) for _ in range(16)]
            results = await asyncio.gather(*batch, return_exceptions=True)
            unexpected = [r for r in results if r is not None and not isinstance(r, TimeoutError)]
            assert unexpected == [], f"seed {seed}"
            check_law(service)
        await eventually(lambda: service.ledger.num_open == 0, 6)
        check_law(service)
        values = counted(service)
    kinds = {name.partition("{")[0] for name in values}
    wanted = {"request_success", "requests_failed", "requests_cancelled", "requests_rejected"}
    assert wanted <= kinds, f"seed {seed}: the storm missed {wanted - kinds}"
    assert service.metrics.render()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    clients=st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.integers(0, 3)), min_size=1, max_size=8),
    seed=st.integers(0, 2**32),
)
def test_a_task_cancelled_at_any_turn_of_the_loop_ends_once(clients, seed):
    """Each client is cancelled after so many turns of the event loop, wherever that finds it."""
    asyncio.run(cancelled_at_any_turn(clients, random.Random(seed)))


async def cancelled_at_any_turn(clients, rng) -> None:
    engine = FakeEngine(error=EngineError("x") if rng.random() < 0.2 else None, fail_after=2)
    service = make_service(engine)
    await service.start()

    async def client(closes: bool) -> None:
        with service.reserve(num_bytes=9, api_key=None, transport="test") as reservation:
            await asyncio.sleep(0)
            stream = await service.chat(reservation, ChatCommand("x", CLIP))
            with contextlib.suppress(ServerError):
                async for _ in stream:
                    if closes:
                        break
            await stream.aclose()

    async def cancel_after(turns: int, task: asyncio.Task[None], repeats: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        for _ in range(repeats):
            task.cancel()
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(client(closes)) for _, closes, _ in clients]
    cancels = [
        cancel_after(turns, task, repeats) for task, (turns, _, repeats) in zip(tasks, clients, strict=True)
    ]
    await asyncio.gather(*cancels)
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.wait_for(service.wait_idle(), 2)
    await asyncio.sleep(0.01)
    check_law(service)
    assert service.ledger.num_open == 0
    assert engine.live == set()
    assert counted(service).get("requests_accepted") == len(clients)


CLIP = wav_clip(0.2)


@pytest.mark.parametrize("turn", range(0, 60, 3))
async def test_a_stop_at_any_turn_ends_everything(turn):
    engine = FakeEngine(step_s=0.001)
    service = make_service(engine)
    await service.start()

    async def client() -> None:
        with service.reserve(num_bytes=9, api_key=None, transport="test") as reservation:
            async with reservation.before_deadline():
                await asyncio.sleep(0)
            stream = await service.chat(reservation, ChatCommand("x", CLIP))
            async for _ in stream:
                pass

    tasks = [asyncio.create_task(client()) for _ in range(3)]
    for _ in range(turn):
        await asyncio.sleep(0)
    await service.stop()
    results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 2)
    assert all(result is None or isinstance(result, ServerError) for result in results)
    check_law(service)
    assert service.ledger.num_open == 0
