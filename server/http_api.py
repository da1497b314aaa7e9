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
    bearer_token,
    content_type,
    declared_bytes,
    decode_base64,
    form_fields,
    form_file,
    parse_scalar,
    parse_stop,
    read_form,
    read_json,
)
from server.http_errors import JsonResponse, handle_http_error, handle_server_error
from server.http_middleware import ExchangeMiddleware
from server.http_replies import Answer, model_json
from server.http_stream import EventStream, chat_events, collect, while_connected
from server.metrics import CONTENT_TYPE
from server.schemas import ChatFields, SpeechChatBody, missing_audio, parse_body
from server.service import ChatCommand, ChatStream, Reservation, SpeechService

FORM_PARSERS: dict[str, Callable[[str], Any]] = {
    **dict.fromkeys(ChatFields.model_fields, parse_scalar),
    **dict.fromkeys(("prompt", "system", "model"), str),
    "stop": parse_stop,
}


def create_app(service: SpeechService) -> ASGIApp:
    """The REST application over a service."""
    app = FastAPI(title="WavLLM", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.state.service = service
    app.state.parsing = asyncio.Semaphore(1)
    app.add_exception_handler(ServerError, handle_server_error)
    app.add_exception_handler(HTTPException, handle_http_error)
    app.add_exception_handler(Exception, handle_server_error)
    add_probe_routes(app, service)
    add_info_routes(app, service)
    add_speech_routes(app, service)
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

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.render(), media_type=CONTENT_TYPE)


def add_probe_routes(app: FastAPI, service: SpeechService) -> None:
    """Health; never asks for a key."""

    @app.head("/livez", include_in_schema=False)
    @app.get("/livez")
    async def livez() -> Response:
        live = service.readiness().live
        return JsonResponse({"status": "alive" if live else "hung"}, 200 if live else 503)

    @app.head("/health", include_in_schema=False)
    @app.get("/health", include_in_schema=False)
    @app.head("/readyz", include_in_schema=False)
    @app.get("/readyz")
    async def readyz() -> Response:
        readiness = service.readiness()
        return JsonResponse({"status": readiness.state}, 200 if readiness.ready else 503)


def add_info_routes(app: FastAPI, service: SpeechService) -> None:
    """The model and the load; with the key, where there are keys."""

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        service.authenticate(bearer_token(request))
        return JsonResponse({"object": "list", "data": [model_json(card) for card in service.models()]})

    @app.get("/v1/load")
    async def load(request: Request) -> Response:
        service.authenticate(bearer_token(request))
        return JsonResponse(dataclasses.asdict(service.load()))


def add_speech_routes(app: FastAPI, service: SpeechService) -> None:
    """`POST /v1/speech/chat`."""

    @app.post("/v1/speech/chat", openapi_extra=_openapi_body())
    async def speech_chat(request: Request) -> Response:
        """Ask about a clip: multipart (`file`, `prompt`, ...) or JSON (`audio.data` in base64)."""
        with reserve(request, service) as reservation:
            async with reservation.before_deadline():
                fields, command = await read_speech_chat(request, service)
            stream = await start_chat(request, service, reservation, command)
            del command  # the upload's bytes; the engine has the waveform
            return await answer_chat(request, service, stream, fields)


def reserve(request: Request, service: SpeechService) -> Reservation:
    """A slot from the headers alone; refusals raise before anything is read."""
    num_bytes = declared_bytes(request, service.settings.max_body_bytes)
    reservation = service.reserve(num_bytes=num_bytes, api_key=bearer_token(request), transport="http")
    request.state.trace.fields["chat_id"] = reservation.request_id
    return reservation


async def read_speech_chat(request: Request, service: SpeechService) -> tuple[ChatFields, ChatCommand]:
    """The body of a speech chat in either form."""
    settings, kind = service.settings, content_type(request)
    if kind == JSON_TYPE:
        body = parse_body(SpeechChatBody, await read_json(request, settings))
        audio = await decode_base64(body.audio.data, settings.max_upload_bytes)
        return body.without_audio(), body.command(audio)
    if kind == FORM_TYPE:
        form = await read_form(request, settings)
        file = form_file(form, "file")
        fields = parse_body(ChatFields, form_fields(form, FORM_PARSERS))
        if file is None:
            raise missing_audio("the file field `file`")
        return fields, fields.command(file)
    raise InvalidRequest(f"The Content-Type must be {FORM_TYPE} or {JSON_TYPE}.")


async def start_chat(
    request: Request, service: SpeechService, reservation: Reservation, command: ChatCommand
) -> ChatStream:
    """Submit; a client that leaves meanwhile cancels."""
    stream = await while_connected(request.receive, service.chat(reservation, command))
    request.state.trace.fields["prompt_tokens"] = stream.accepted.prompt_tokens
    if stream.audio is not None:
        request.state.trace.fields["audio_s"] = round(stream.audio.duration_s, 3)
    return stream


async def answer_chat(
    request: Request, service: SpeechService, stream: ChatStream, fields: ChatFields
) -> Response:
    """The reply to an accepted request: whole, or as a stream."""
    answer = Answer(stream.request_id, service.model_name, fields.return_token_ids)
    trace = request.state.trace
    if fields.stream:
        first, events = chat_events(stream, answer, include_usage=fields.include_usage)
        keepalive_s = service.settings.sse_keepalive
        return EventStream(stream, first, events, keepalive_s=keepalive_s, trace=trace)
    reply = await while_connected(request.receive, collect(stream, answer, trace))
    return JsonResponse(reply)


def _openapi_body() -> dict[str, Any]:
    """The two bodies, for /openapi.json; the routes parse them by themselves."""
    form = ChatFields.model_json_schema(ref_template="#/components/schemas/{model}")
    options = form.pop("$defs", {})
    form["properties"]["stream_options"] = options.get("StreamOptions", {})
    form["properties"]["file"] = {"type": "string", "format": "binary"}
    form["required"] = [*form["required"], "file"]
    json_properties = {name: value for name, value in form["properties"].items() if name != "file"}
    audio = {
        "type": "object",
        "properties": {"data": {"type": "string", "format": "byte"}},
        "required": ["data"],
    }
    json_body = form | {"properties": json_properties | {"audio": audio}, "required": ["prompt", "audio"]}
    content = {FORM_TYPE: {"schema": form}, JSON_TYPE: {"schema": json_body}}
    return {"requestBody": {"required": True, "content": content}}
