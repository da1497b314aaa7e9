"""Bodies: what their reading costs those who wait meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from fakes import make_service
from starlette.requests import Request
from starlette.types import ASGIApp

from server.errors import InvalidRequest, PayloadTooLarge, ServerError
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
def test_what_nearly_is_a_boundary_is_refused_at_once(tail: str) -> None:
    form = FormReader("multipart/form-data; boundary=a", max_file_bytes=2**25, max_field_bytes=2**20)
    form.feed(b'--a\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n')
    begin = time.process_time()
    with pytest.raises(InvalidRequest, match="malformed"):
        form.feed(f"\r\n--a{tail}".encode() * 10_000)
    assert time.process_time() - begin < 0.1


@pytest.mark.parametrize("body", [b"\r" * 2**22, b"\r\n--" * 2**20, b"\r\n" * 2**21])
@pytest.mark.parametrize("size", [997, 2**18])
def test_no_bytes_of_a_file_cost_much(body: bytes, size: int) -> None:
    form = FormReader("multipart/form-data; boundary=a", max_file_bytes=2**25, max_field_bytes=2**20)
    form.feed(b'--a\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n')
    begin = time.process_time()
    for start in range(0, len(body), size):
        form.feed(body[start : start + size])
    assert time.process_time() - begin < 0.3
    form.feed(b"\r\n--a--\r\n")
    form.close()
    assert form.files == [("file", body)]


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_a_form_is_the_same_however_its_bytes_come(size: int) -> None:
    file = bytes(range(256)) + b"\r\n--bound\r\n-" + b"\r"
    body = (
        b'--boundary\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nWhat is said?\r\n'
        b'--boundary\r\ncontent-disposition: form-data; filename="a.wav"; name=file\r\n'
        b"Content-Type: audio/wav\r\n\r\n" + file + b"\r\n--boundary--\r\n"
    )
    form = FormReader('multipart/form-data; boundary="boundary"', max_file_bytes=300, max_field_bytes=20)
    for start in range(0, len(body), size):
        form.feed(body[start : start + size])
    form.close()
    assert form.fields == [("prompt", "What is said?")]
    assert form.files == [("file", file)]


@pytest.mark.parametrize(
    "disposition",
    [
        b'form-data; name="file"; filename="aufnahme_\xfc.wav"',
        b"form-data; name=\"file\"; filename*=utf-8''%e2%82%ac.wav",
        b"form-data; name=file; filename=/tmp/a.wav",
        b'form-data; name="file"; filename=""',
        b"form-data; name=file; FileName=\xe9.wav",
    ],
)
def test_a_file_is_one_whatever_its_name(disposition: bytes) -> None:
    """In any code page, without quotes, as older clients write it (RFC 5987)."""
    form = FormReader("multipart/form-data; boundary=a", max_file_bytes=300, max_field_bytes=20)
    form.feed(b"--a\r\nContent-Disposition: " + disposition + b"\r\n\r\nRIFF\r\n--a--\r\n")
    form.close()
    assert form.files == [("file", b"RIFF")]


@pytest.mark.parametrize("boundary", ["----=_Part_1", "abc/def", "a:b", '"a b?c"', "\u00e9", "b" * 70])
def test_boundaries_need_no_quotes(boundary: str) -> None:
    form = FormReader(f"multipart/form-data; boundary={boundary}", max_file_bytes=300, max_field_bytes=20)
    mark = b"--" + boundary.strip('"').encode("latin-1")
    form.feed(mark + b'\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nhi\r\n' + mark + b"--")
    form.close()
    assert form.fields == [("prompt", "hi")]


def test_names_are_utf_8() -> None:
    form = FormReader("multipart/form-data; boundary=a", max_file_bytes=300, max_field_bytes=20)
    form.feed('--a\r\nContent-Disposition: form-data; name="größe"\r\n\r\n1\r\n--a--'.encode())
    form.close()
    assert form.fields == [("größe", "1")]


def test_a_boundary_has_a_bound() -> None:
    with pytest.raises(InvalidRequest, match="longer than 70"):
        FormReader(f"multipart/form-data; boundary={'-' * 71}", max_file_bytes=1, max_field_bytes=1)


def test_nothing_long_comes_before_the_first_boundary() -> None:
    form = FormReader("multipart/form-data; boundary=a", max_file_bytes=2**25, max_field_bytes=20)
    form.feed(b"-" * 1024)
    with pytest.raises(InvalidRequest, match="begin with its boundary"):
        form.feed(b"-")


def test_headers_of_many_lines_cost_little() -> None:
    """The parser joins a header anew for each line that goes on with it."""
    form = FormReader("multipart/form-data; boundary=a", max_file_bytes=2**25, max_field_bytes=20)
    header = b"x: y" + b"\r\n z" * 500 + b"\r\n"
    part = b'--a\r\nContent-Disposition: form-data; name="p"\r\n' + 5 * header + b"\r\nv\r\n"
    begin = time.process_time()
    form.feed(64 * part + b"--a--")
    assert time.process_time() - begin < 1.0
    with pytest.raises(InvalidRequest, match="malformed"):
        FormReader("multipart/form-data; boundary=a", max_file_bytes=1, max_field_bytes=1).feed(
            part.replace(b"z", b"zzzz")
        )


def test_a_form_may_have_as_many_parts_as_it_may() -> None:
    form = FormReader("multipart/form-data; boundary=a", max_file_bytes=2**25, max_field_bytes=2**20)
    head = b'--a\r\ncontent-disposition: form-data; name="x"\r\n\r\n'
    form.feed(head + (b"v\r\n" + head) * 63 + b"v\r\n--a--\r\n")
    form.close()
    assert len(form.fields) == 64


@pytest.mark.parametrize(
    ("file", "prompt", "error"),
    [(b"x" * 31, b"p", PayloadTooLarge), (b"x", b"p" * 11, InvalidRequest), (b"x" * 30, b"p" * 10, None)],
)
def test_files_and_fields_have_bounds_of_their_own(
    file: bytes, prompt: bytes, error: type[ServerError] | None
) -> None:
    form = FormReader("multipart/form-data; boundary=a", max_file_bytes=30, max_field_bytes=10)
    parts = [(b'name="file"; filename="x"', file), (b'name="prompt"', prompt)]
    body = b"".join(
        b"--a\r\ncontent-disposition: form-data; " + head + b"\r\n\r\n" + data + b"\r\n"
        for head, data in parts
    )
    with pytest.raises(error) if error else contextlib.nullcontext():
        for byte in body + b"--a--":
            form.feed(bytes([byte]))


def test_a_form_has_no_more_parts_than_it_may() -> None:
    form = FormReader("multipart/form-data; boundary=a", max_file_bytes=2**25, max_field_bytes=2**20)
    head = b'--a\r\ncontent-disposition: form-data; name="x"\r\n\r\n'
    with pytest.raises(InvalidRequest, match="more than 64 parts"):
        form.feed(head + (b"v\r\n" + head) * 64 + b"v\r\n--a--\r\n")
