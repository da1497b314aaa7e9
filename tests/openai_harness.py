"""The real `openai` package against a real socket over the fakes."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fakes import make_service, wav_clip
from http_harness import LiveServer, live_server
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from server.service import SpeechService

MODEL = "fake-wavllm"
CLIP = wav_clip()


@contextlib.asynccontextmanager
async def openai_client(
    service: SpeechService | None = None, *, start: bool = True, api_key: str = "none", max_retries: int = 0
) -> AsyncIterator[tuple[AsyncOpenAI, LiveServer]]:
    """A client of a live server; the metrics' law and the ledger are checked at the end."""
    async with live_server(service or make_service(), start=start) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        # Plain HTTP: without `verify=False` every client reads all root certificates, 0.3 s each.
        http = DefaultAsyncHttpxClient(verify=False)
        async with AsyncOpenAI(
            base_url=url, api_key=api_key, max_retries=max_retries, http_client=http
        ) as client:
            yield client, server


def audio_part(clip: bytes = CLIP) -> dict[str, Any]:
    """An `input_audio` part."""
    data = base64.b64encode(clip).decode()
    return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}


def text_part(text: str) -> dict[str, Any]:
    """A text part."""
    return {"type": "text", "text": text}


def user(*parts: dict[str, Any]) -> dict[str, Any]:
    """The user's message; about a clip unless parts are given."""
    return {"role": "user", "content": list(parts) or [text_part("What is said?"), audio_part()]}
