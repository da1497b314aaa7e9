"""One server over HTTP: streamed questions, each timed as its bytes come."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import httpx

from server.bench.stream import ChatReader, EventReader, MalformedStream
from server.bench.types import Api, BenchError, Exchange, Outcome, Question
from server.eval.over_http import error_of, message_of

PATHS = {Api.SPEECH: "/v1/speech/chat", Api.OPENAI: "/v1/chat/completions"}
INFO_PATHS = ("/v1/models", "/v1/load")
INFO_S = 10.0
"""How long what the server is may take to tell."""
KEEPALIVE_S = 2.0
"""Less than servers keep an idle connection (uvicorn: 5 s), so that none closes just as it is used again."""
Fault = tuple[str, str]
"""What went wrong: its kind, or the server's code for it, and more on it."""


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body, made before the clock runs."""

    content: bytes
    content_type: str


class HttpAsker:
    """Asks one server, what it was prepared for; close it with `aclose`. timeout_s: of one question."""

    def __init__(self, url: str, api: Api, api_key: str | None, *, timeout_s: float) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._url = url.rstrip("/")
        limits = httpx.Limits(max_connections=None, keepalive_expiry=KEEPALIVE_S)
        self._client = httpx.AsyncClient(
            base_url=self._url, headers=headers, timeout=None, limits=limits, follow_redirects=False
        )
        self._api = api
        self._timeout_s = timeout_s
        self._bodies: dict[str, Body] = {}

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def describe(self) -> dict[str, Any]:
        """`model` and `load` as the server tells them, null where it does not.

        Raises BenchError if there is no server, or it does not know the key.
        """
        try:
            models, load = [await self._client.get(path, timeout=INFO_S) for path in INFO_PATHS]
        except httpx.TransportError as error:
            raise BenchError(f"{self._url}: cannot connect: {error!r}") from error
        if models.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise BenchError(f"{self._url}: {models.status_code}: {message_of(models)}")
        listed = _object_of(models).get("data")
        entry = listed[0] if isinstance(listed, list) and listed else None
        model = entry if isinstance(entry, dict) else None
        return {"url": self._url, "model": model, "load": _object_of(load) or None}

    def prepare(self, questions: Sequence[Question], *, model: str | None, max_tokens: int) -> None:
        """Make the bodies, so that none is made while the clock runs."""
        make_body = BODIES[self._api]
        self._bodies = {question.id: make_body(question, model, max_tokens) for question in questions}

    async def ask(self, question: Question, leave_after: int | None = None) -> Exchange:
        """Ask once; every way to end is an Exchange."""
        body, answer = self._bodies[question.id], ChatReader()
        fault: Fault | None = None
        try:
            async with asyncio.timeout(self._timeout_s), self._post(body) as response:
                if response.status_code != httpx.codes.OK:
                    return await _refusal(response)
                fault = await _read(response, answer, leave_after)
        except TimeoutError:
            fault = "timeout", f"no end within {self._timeout_s:g} s"
        except httpx.TransportError as error:
            fault = "connection", repr(error)
        except MalformedStream as error:
            fault = "malformed", str(error)
        return _exchange(answer, fault)

    def _post(self, body: Body) -> AbstractAsyncContextManager[httpx.Response]:
        headers = {"content-type": body.content_type}
        return self._client.stream("POST", PATHS[self._api], content=body.content, headers=headers)


async def _read(response: httpx.Response, answer: ChatReader, leave_after: int | None) -> Fault | None:
    """Until the last byte, an error, or the moment to leave; leaving the response closes its connection.

    Returns what is wrong if the end never came, None for leaving too.
    """
    events = EventReader()
    if leave_after == 0:
        return None
    async for data in response.aiter_bytes():
        at = time.perf_counter()
        for event in events.feed(data):
            answer.take(event, at)
            if answer.error is not None:
                return str(answer.error.get("code") or "error"), str(answer.error.get("message"))
            if leave_after is not None and answer.num_chars >= leave_after:
                return None
    return None if _is_whole(answer) else ("cut", "the stream ended before its answer did")


def _is_whole(answer: ChatReader) -> bool:
    return answer.done_at is not None and answer.finish_reason is not None


def _exchange(answer: ChatReader, fault: Fault | None) -> Exchange:
    """Nothing that goes wrong after the answer's end counts; without end or fault the client has left."""
    if _is_whole(answer):
        outcome, fault = Outcome.OK, None
    else:
        outcome = Outcome.FAILED if fault else Outcome.CANCELLED
    error, detail = fault or (None, "")
    return Exchange(
        outcome,
        answer.done_at if outcome is Outcome.OK and answer.done_at else time.perf_counter(),
        tuple(answer.pieces),
        error=error,
        detail=detail,
        finish_reason=answer.finish_reason,
        usage_tokens=answer.usage_tokens,
    )


async def _refusal(response: httpx.Response) -> Exchange:
    """A status instead of an answer: what the server would not do, or (a failure) could not."""
    await response.aread()
    status = response.status_code
    is_refusal = 400 <= status < 500 or status == httpx.codes.SERVICE_UNAVAILABLE
    return Exchange(
        Outcome.REJECTED if is_refusal else Outcome.FAILED,
        time.perf_counter(),
        status=status,
        error=str(error_of(response).get("code") or f"status {status}"),
        detail=message_of(response),
    )


# Bodies


def _speech_body(question: Question, model: str | None, max_tokens: int) -> Body:
    """A form, as most clients send; with token ids, for exact counts."""
    fields = {"prompt": question.prompt, "max_tokens": str(max_tokens), "temperature": "0"}
    fields |= {"stream": "true", "return_token_ids": "true"} | ({"model": model} if model else {})
    files = {"file": (question.clip.name, question.clip.data)}
    request = httpx.Request("POST", "http://body", data=fields, files=files)
    return Body(request.read(), request.headers["content-type"])


def _openai_body(question: Question, model: str | None, max_tokens: int) -> Body:
    audio = {"data": base64.b64encode(question.clip.data).decode(), "format": question.clip.kind}
    text = [{"type": "text", "text": question.prompt}] if question.prompt else []
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": [*text, {"type": "input_audio", "input_audio": audio}]}],
        "max_completion_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return Body(json.dumps(body | ({"model": model} if model else {})).encode(), "application/json")


BODIES: dict[Api, Callable[[Question, str | None, int], Body]] = {
    Api.SPEECH: _speech_body,
    Api.OPENAI: _openai_body,
}


def _object_of(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a good response, or {}."""
    try:
        body = response.json() if response.status_code == httpx.codes.OK else {}
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}
