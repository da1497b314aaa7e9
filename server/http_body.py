"""A request's body under its cap, as JSON or a form, to the plain fields of a schema."""

from __future__ import annotations

import asyncio
import binascii
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request

from server.admission import bearer_token
from server.errors import DeadlineExceeded, InvalidAudio, InvalidRequest, PayloadTooLarge, RequestCancelled
from server.http_form import FILE_FIELD, FormReader
from server.settings import Settings

JSON_TYPE = "application/json"
FORM_TYPE = "multipart/form-data"
MAX_UTF8_BYTES = 4
BODY_STALL_S = 30.0
PYTHONS = {"True": "true", "False": "false"}
BASE64_SLICE = 2**20
"""Characters decoded between two turns of the event loop; a multiple of four."""


def api_key_of(request: Request) -> str | None:
    """The API key of the `Authorization: Bearer` header."""
    return bearer_token(request.headers.get("authorization", ""))


def declared_bytes(request: Request, max_bytes: int) -> int:
    """Bytes that the headers announce; the whole cap for a body in chunks."""
    if "transfer-encoding" in request.headers:
        return max_bytes
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise InvalidRequest("The Content-Length is not a number.")
    return int(length)


def content_type(request: Request) -> str:
    """The media type without parameters. Raises InvalidRequest for a body that is compressed."""
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise InvalidRequest("Compressed bodies (Content-Encoding) are not taken.")
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def body_chunks(request: Request, max_bytes: int) -> AsyncIterator[bytes]:
    """The body piece by piece.

    Raises PayloadTooLarge past the cap, RequestCancelled if the client leaves, DeadlineExceeded if it sends
    nothing for BODY_STALL_S: a slot is held meanwhile.
    """
    num_bytes = 0
    while True:
        try:
            async with asyncio.timeout(BODY_STALL_S):
                message = await request.receive()
        except TimeoutError as error:
            raise DeadlineExceeded(f"Nothing of the body came for {BODY_STALL_S:g} s.") from error
        if message["type"] == "http.disconnect":
            raise RequestCancelled("The client went away.")
        chunk = message.get("body", b"")
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise PayloadTooLarge(f"The body has more than {max_bytes} bytes.")
        yield chunk
        if not message.get("more_body", False):
            return


async def read_json(request: Request, settings: Settings) -> dict[str, Any]:
    """The body as a JSON object. Raises InvalidRequest for anything else, NaN and repeated names included.

    One body at a time is parsed (`app.state.parsing`): the largest takes 50 ms of the event loop in two
    steps, and several that end together would hold up the health routes for all of their steps.
    """
    body = bytearray()
    async for chunk in body_chunks(request, settings.max_body_bytes):
        body += chunk
    async with request.app.state.parsing:
        value = await _parse_json(body)
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value


async def _parse_json(body: bytearray) -> Any:
    try:
        text = body.decode("utf-8")
        await asyncio.sleep(0)
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest("The body is not valid JSON in UTF-8.") from error


async def read_form(request: Request, settings: Settings) -> FormReader:
    """The body as a form."""
    form = FormReader(
        request.headers.get("content-type", ""),
        max_file_bytes=settings.max_upload_bytes,
        max_field_bytes=MAX_UTF8_BYTES * settings.max_prompt_chars,
    )
    async for chunk in body_chunks(request, settings.max_body_bytes):
        form.feed(chunk)
    form.close()
    return form


def form_fields(form: FormReader, parsers: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
    """The text fields by name, each parsed by `parsers[name]`; `name[]` may come more than once.

    Raises InvalidRequest for a repeated field.
    """
    values: dict[str, Any] = {}
    lists: dict[str, list[str]] = {}
    for sent, text in form.fields:
        name = sent.removesuffix("[]")
        if name in values or (name in lists and name == sent):
            raise InvalidRequest(f"{name} was sent more than once.", param=name)
        if name == sent:
            values[name] = parsers.get(name, str)(text)
        else:
            lists.setdefault(name, []).append(text)
    return values | lists


def form_file(form: FormReader) -> bytes | None:
    """The one file, FILE_FIELD; None if there is none. Raises InvalidRequest for any other file."""
    found: bytes | None = None
    for sent, data in form.files:
        if sent != FILE_FIELD:
            raise InvalidRequest(f"There is no file field {sent}.", param=sent)
        if found is not None:
            raise InvalidRequest(f"{FILE_FIELD} was sent more than once.", param=FILE_FIELD)
        found = data
    return found


def parse_scalar(text: str) -> Any:
    """true, false, a number or null as JSON has them; anything else stays text, for the schema to refuse.

    `True` and `False` too, as Python's requests writes them in a form.
    """
    try:
        return json.loads(PYTHONS.get(text, text), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return text


def parse_stop(text: str) -> Any:
    """A JSON list of strings, or else the text itself as the one stop string."""
    value = parse_scalar(text) if text.startswith("[") else text
    return value if isinstance(value, list) else text


async def decode_base64(data: str, max_bytes: int, name: str = "audio.data") -> bytes:
    """Strict base64 (RFC 4648, padded, no line breaks), in slices so that the event loop keeps turning.

    name: how the client knows the field. Raises InvalidAudio for anything else, PayloadTooLarge for more than
    max_bytes.
    """
    if len(data) // 4 * 3 - data[-2:].count("=") > max_bytes:
        raise PayloadTooLarge(f"The audio is larger than {max_bytes} bytes.", param="audio")
    pieces = []
    for start in range(0, len(data), BASE64_SLICE):
        piece = data[start : start + BASE64_SLICE]
        is_last = start + BASE64_SLICE >= len(data)
        if "=" in piece and not is_last:
            raise InvalidAudio(f"{name} has padding before its end.")
        try:
            pieces.append(binascii.a2b_base64(piece, strict_mode=True))
        except ValueError as error:
            raise InvalidAudio(f"{name} is not valid base64.") from error
        await asyncio.sleep(0)
    return b"".join(pieces)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name is repeated")
    return values
