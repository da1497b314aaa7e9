"""Bodies: what their reading costs those who wait meanwhile."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI
from starlette.requests import Request

from server.http_body import read_json
from server.settings import Settings


def request_of(app: FastAPI, body: bytes) -> Request:
    """A request whose body is there at once."""

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body}

    return Request({"type": "http", "app": app, "headers": []}, receive)


async def test_one_body_is_parsed_in_a_turn_of_the_event_loop() -> None:
    app = FastAPI()
    app.state.parsing = asyncio.Semaphore(1)
    bodies = [f'{{"n": {number}}}'.encode() for number in range(8)]
    tasks = [asyncio.create_task(read_json(request_of(app, body), Settings())) for body in bodies]
    num_done = 0
    while num_done < len(tasks):
        await asyncio.sleep(0)
        before, num_done = num_done, sum(task.done() for task in tasks)
        assert num_done - before <= 1
    assert [task.result()["n"] for task in tasks] == list(range(8))
