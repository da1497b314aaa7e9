"""Answers from a running server, over its REST API."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

import httpx

from server.eval.types import Answer, EvalError, Progress, Row

CHAT = "/v1/speech/chat"
MODELS = "/v1/models"
TIMEOUT_S = 900.0
"""More than any deadline of the server's; so long without a byte, and it is gone."""
MAX_WAIT_S = 600.0
"""A question that was put off for so long is given up."""
FIRST_PAUSE_S = 0.5
MAX_PAUSE_S = 30.0
NUM_CONNECT_ATTEMPTS = 5
BUSY = frozenset({429, 503})
UNAVAILABLE = 503
MAX_UNAVAILABLE = 3
"""Questions in a row that were given up because of it; then the run ends."""
FATAL_STATUS = frozenset({401, 403, 404, 405})
FATAL_PARAMS = frozenset({"model", "max_tokens"})
"""What is wrong with one question is then wrong with all."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What a server says of its model. fingerprint: None if it tells none."""

    name: str
    fingerprint: str | None
    random_weights: bool


class HttpAnswerer:
    """Asks one server; close it with `aclose`.

    pause: how it waits; replaced in tests. transport: httpx's, likewise.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None,
        max_tokens: int,
        *,
        transport: httpx.AsyncBaseTransport | None = None,
        pause: Any = asyncio.sleep,
    ) -> None:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/"), headers=headers, timeout=TIMEOUT_S, limits=limits, transport=transport
        )
        self._url = url
        self._max_tokens = max_tokens
        self._pause = pause
        self._num_unavailable = 0

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def served_model(self, on_wait: Progress | None = None) -> ServedModel:
        """What the server serves. Raises EvalError if it is no server of this kind.

        on_wait: told how long a server that loads has been waited for, in seconds.
        """
        try:
            response = await self._models(on_wait)
            self._raise_if_fatal(response)
            if response.status_code == UNAVAILABLE:
                raise EvalError(f"{self._url}: {UNAVAILABLE}: {message_of(response)}")
            entry = response.json()["data"][0]
            name, fingerprint = str(entry["id"]), entry.get("fingerprint")
            return ServedModel(name, fingerprint or None, entry.get("random_weights") is True)
        except (httpx.TransportError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise EvalError(f"{self._url}: does not answer as a WavLLM server does ({error!r})") from error

    async def _models(self, on_wait: Progress | None) -> httpx.Response:
        """Waits only for a server that says when to come back, as one that loads does."""
        waited_s = 0.0
        while True:
            response = await self._send("GET", MODELS)
            wait_s = _retry_after_s(response)
            if response.status_code != UNAVAILABLE or wait_s is None or waited_s >= MAX_WAIT_S:
                return response
            if on_wait is not None:
                on_wait(int(waited_s), int(MAX_WAIT_S), f"waiting for it: {message_of(response)}")
            await self._pause(wait_s)
            waited_s += wait_s

    async def answer(self, row: Row) -> Answer:
        """Ask; waits and asks again while the server is busy, or could not answer in time."""
        try:
            clip = await asyncio.to_thread(row.audio.read_bytes)
        except OSError as error:
            return Answer(error=f"{row.audio}: {error.strerror}")
        return await self._ask_until_taken(row, clip)

    async def _ask_until_taken(self, row: Row, clip: bytes) -> Answer:
        waited_s, pause_s = 0.0, FIRST_PAUSE_S
        while True:
            begin = time.monotonic()
            try:
                response = await self._send(
                    "POST",
                    CHAT,
                    files={"file": ("clip", clip)},
                    data={"prompt": row.prompt, "max_tokens": str(self._max_tokens)},
                )
            except httpx.TransportError as error:
                return Answer(error=f"connection: {error!r}")
            latency_ms = (time.monotonic() - begin) * 1e3
            if not _is_busy(response) or waited_s >= MAX_WAIT_S:
                self._count_unavailable(response)
                return self._answer_of(response, latency_ms)
            wait_s = _retry_after_s(response) or pause_s
            await self._pause(wait_s)
            waited_s += wait_s + latency_ms / 1e3
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    def _count_unavailable(self, response: httpx.Response) -> None:
        """Raises EvalError when waiting for the next question too is pointless."""
        self._num_unavailable = self._num_unavailable + 1 if response.status_code == UNAVAILABLE else 0
        if self._num_unavailable == MAX_UNAVAILABLE:
            raise EvalError(
                f"{self._url}: {UNAVAILABLE}: {message_of(response)} "
                f"({MAX_UNAVAILABLE} questions in a row were put off for {MAX_WAIT_S:.0f} s each)"
            )

    async def _send(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Connect, patiently: a server may be restarting. Raises EvalError if it stays away."""
        for attempt in range(NUM_CONNECT_ATTEMPTS):
            try:
                return await self._client.request(method, path, **content)
            except httpx.ConnectError as error:
                cause = error
            if attempt + 1 < NUM_CONNECT_ATTEMPTS:
                await self._pause(FIRST_PAUSE_S * 2**attempt)
        raise EvalError(f"{self._url}: cannot connect: {cause}")

    def _answer_of(self, response: httpx.Response, latency_ms: float) -> Answer:
        self._raise_if_fatal(response)
        if response.status_code != 200:
            return Answer(error=f"{response.status_code}: {message_of(response)}")
        try:
            choice = response.json()["choices"][0]
            text, finish_reason = choice["message"]["content"], choice["finish_reason"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            return Answer(error=f"the server's reply cannot be read: {error!r}")
        return Answer(text, finish_reason, round(latency_ms, 3))

    def _raise_if_fatal(self, response: httpx.Response) -> None:
        if response.status_code in FATAL_STATUS or error_of(response).get("param") in FATAL_PARAMS:
            raise EvalError(f"{self._url}: {response.status_code}: {message_of(response)}")


def _is_busy(response: httpx.Response) -> bool:
    """Whether the same question may be answered later."""
    code = error_of(response).get("code")
    return response.status_code in BUSY or (response.status_code == 504 and code == "deadline_exceeded")


def _retry_after_s(response: httpx.Response) -> float | None:
    """The header's seconds, MAX_WAIT_S at most; None for a date or nonsense."""
    value = response.headers.get("retry-after", "")
    return min(float(value), MAX_WAIT_S) if value.isdecimal() and float(value) > 0 else None


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The `error` of a body that was read, or {}."""
    if response.status_code == 200:
        return {}
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        return {}
    return error if isinstance(error, dict) else {}


def message_of(response: httpx.Response) -> str:
    """What the server says went wrong, else the status in words."""
    return str(error_of(response).get("message") or response.reason_phrase)
