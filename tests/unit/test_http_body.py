"""Bodies: what their reading costs those who wait meanwhile."""

from __future__ import annotations

import asyncio
import time

import pytest
from fakes import make_service
from starlette.requests import Request
from starlette.types import ASGIApp

from server.errors import InvalidRequest
from server.http_api import create_app
from server.http_body import read_json
from server.http_form import FormReader
from server.settings import Settings


def request_of(app: ASGIApp, body: bytes) -> Request:
    """A request whose body is there at once."""

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body}

    return Request({"type": "http", "app": app, "headers": []}, receive)


async def test_one_body_is_parsed_in_a_turn_of_the_event_loop() -> None:
    app = create_app(make_service())._app
    bodies = [f'{{"n": {number}}}'.encode() for number in range(8)]
    tasks = [asyncio.create_task(read_json(request_of(app, body), Settings())) for body in bodies]
    num_done = 0
    while num_done < len(tasks):
        await asyncio.sleep(0)
        before, num_done = num_done, sum(task.done() for task in tasks)
        assert num_done - before <= 1
    assert [task.result()["n"] for task in tasks] == list(range(8))


@pytest.mark.parametrize("tail", ["b", "\r", "-"])
def test_what_nearly_is_a_boundary_costs_next_to_nothing(tail: str) -> None:
    """It costs the parser 300 times as much as other bytes, all of it in the event loop."""
    form = FormReader("multipart/form-data; boundary=a", max_file_bytes=2**25, max_field_bytes=2**20)
    form.feed(b'--a\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n')
    begin = time.process_time()
    with pytest.raises(InvalidRequest, match="more than 64 parts"):
        form.feed(f"\r\n--a{tail}".encode() * 10_000)
    assert time.process_time() - begin < 0.1


def test_a_form_may_have_as_many_parts_as_it_may() -> None:
    form = FormReader("multipart/form-data; boundary=a", max_file_bytes=2**25, max_field_bytes=2**20)
    head = b'--a\r\ncontent-disposition: form-data; name="x"\r\n\r\n'
    form.feed(head + (b"v\r\n" + head) * 63 + b"v\r\n--a--\r\n")
    form.close()
    assert len(form.fields) == 64
