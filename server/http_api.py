"""The REST routes. A slot is reserved from the headers before a byte of the body is read."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp

from server.errors import InvalidRequest, ServerError
from server.http_body import (
    FORM_TYPE,
    JSON_TYPE,
    api_key_of,
    content_type,
    decode_base64,
    form_fields,
    form_file,
    parse_scalar,
    parse_stop,
    read_form,
    read_json,
)
from server.http_errors import JsonResponse, handle_http_error, handle_server_error
from server.http_exchange import Ask, chat_ask, exchange
from server.http_middleware import ExchangeMiddleware
from server.http_openapi import (
    CHAT_DOCS,
    LIVE_DOCS,
    LOAD_DOCS,
    METRICS_DOCS,
    MODEL_DOCS,
    MODELS_DOCS,
    READY_DOCS,
    SPEECH_CHAT_BODY,
    WITH_KEY,
    DocumentedApp,
)
from server.http_playground import add_playground_routes
from server.http_replies import model_json
from server.metrics import CONTENT_TYPE
from server.openai_api import add_openai_routes
from server.schemas import ChatFields, SpeechChatBody, missing_audio, parse_body
from server.service import SpeechService

FORM_PARSERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(ChatFields.model_fields, parse_scalar),
    **dict.fromkeys(("prompt", "system", "model"), str),
    "stop": parse_stop,
}


def create_app(service: SpeechService) -> ASGIApp:
    """The REST application over a service."""
    app = DocumentedApp(title="WavLLM", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = service
    app.state.parsing = asyncio.Semaphore(1)
    app.add_exception_handler(ServerError, handle_server_error)
    app.add_exception_handler(HTTPException, handle_http_error)
    app.add_exception_handler(Exception, handle_server_error)
    add_probe_routes(app, service)
    add_info_routes(app, service)
    add_speech_routes(app, service)
    add_openai_routes(app, service)
    add_playground_routes(app)
    if service.settings.metrics_port and service.settings.metrics_port == service.settings.http_port:
        add_metrics_route(app, service)
    return ExchangeMiddleware(app, lambda: service.readiness().state == "draining")


def create_metrics_app(service: SpeechService) -> ASGIApp:
    """`/metrics` alone, for a port of its own."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, handle_http_error)
    add_metrics_route(app, service)
    return ExchangeMiddleware(app, lambda: False)


def add_metrics_route(app: FastAPI, service: SpeechService) -> None:
    """Prometheus' text format."""

    @app.get("/metrics", response_class=Response, responses=METRICS_DOCS)
    async def metrics() -> Response:
        """Every metric."""
        return Response(service.metrics.render(), media_type=CONTENT_TYPE)


def add_probe_routes(app: FastAPI, service: SpeechService) -> None:
    """Health; never asks for a key."""

    @app.head("/livez", include_in_schema=False)
    @app.get("/livez", responses=LIVE_DOCS)
    async def livez() -> Response:
        """Whether the engine gives signs of life, or, if it was lost, may still come back."""
        live = service.readiness().live
        return JsonResponse({"status": "alive" if live else "hung"}, 200 if live else 503)

    @app.head("/health", include_in_schema=False)
    @app.get("/health", include_in_schema=False)
    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz", responses=READY_DOCS)
    async def readyz() -> Response:
        """Whether requests should be sent here; a full queue does not change that."""
        readiness = service.readiness()
        return JsonResponse({"status": readiness.state}, 200 if readiness.ready else 503)


def add_info_routes(app: FastAPI, service: SpeechService) -> None:
    """The model and the load; with the key, where there are keys."""

    @app.get("/v1/models", responses=MODELS_DOCS, openapi_extra=WITH_KEY)
    async def models(request: Request) -> Response:
        """The served model, its limits and what it can do."""
        service.authenticate(api_key_of(request))
        return JsonResponse({"object": "list", "data": [model_json(card) for card in service.models()]})

    @app.get("/v1/models/{model_id:path}", responses=MODEL_DOCS, openapi_extra=WITH_KEY)
    async def model(request: Request, model_id: str) -> Response:
        """One model by its name, which may hold slashes."""
        if not model_id:
            raise HTTPException(404)
        service.authenticate(api_key_of(request))
        return JsonResponse(model_json(service.model(model_id)))

    @app.get("/v1/load", responses=LOAD_DOCS, openapi_extra=WITH_KEY)
    async def load(request: Request) -> Response:
        """How busy the server is."""
        service.authenticate(api_key_of(request))
        return JsonResponse(dataclasses.asdict(service.load()))


def add_speech_routes(app: DocumentedApp, service: SpeechService) -> None:
    """`POST /v1/speech/chat`."""

    @app.answer("/v1/speech/chat", responses=CHAT_DOCS, openapi_extra=SPEECH_CHAT_BODY)
    async def speech_chat(request: Request) -> Response:
        """Ask about a clip: multipart (`file`, `prompt`, ...) or JSON (`audio.data` in base64)."""
        return await exchange(request, service, read_speech_chat)


async def read_speech_chat(request: Request, service: SpeechService) -> Ask:
    """The body of a speech chat in either form."""
    settings, kind = service.settings, content_type(request)
    if kind == JSON_TYPE:
        body = parse_body(SpeechChatBody, await read_json(request, settings))
        return chat_ask(body, await decode_base64(body.audio.data, settings.max_upload_bytes))
    if kind == FORM_TYPE:
        form = await read_form(request, settings)
        file = form_file(form)
        fields = parse_body(ChatFields, form_fields(form, FORM_PARSERS))
        if file is None:
            raise missing_audio("the file field `file`")
        return chat_ask(fields, file)
    raise InvalidRequest(f"The Content-Type must be {FORM_TYPE} or {JSON_TYPE}.")
