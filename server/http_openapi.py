"""What /openapi.json says of the routes, which read their bodies and write their replies themselves."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, cast

from fastapi import FastAPI, Request
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import Response

from server.http_body import FORM_TYPE, JSON_TYPE
from server.http_body_docs import REF_TEMPLATE, complete_bodies, form_schema
from server.openai_schemas import ChatCompletionBody
from server.reply_schemas import (
    SHAPES,
    ChatCompletion,
    ChatCompletionChunk,
    ErrorReply,
    LoadReply,
    ModelEntry,
    ModelList,
    ProbeReply,
    TranscriptBody,
    TranscriptTextDelta,
    TranscriptTextDone,
    reference,
)
from server.schemas import ChatFields, SpeechChatBody

EVENTS_TYPE = "text/event-stream"
TEXT_TYPE = "text/plain"
BODIES: tuple[type[BaseModel], ...] = (SpeechChatBody, ChatCompletionBody)
ERRORS = {
    400: "A field, the clip or the body is at fault; `param` names the field",
    401: "The key is missing or wrong",
    404: "This model is not served here",
    413: "The body or the clip is larger than the cap",
    415: "The bytes are no audio that is known here; the message names what they look like",
    429: "This key is over its rate",
    500: "The engine failed on this request, or the server did",
    503: "The queue is full, or the server is loading, draining or starting its engine again",
    504: "The request did not end before its deadline",
}
REQUEST_ID = {
    "x-request-id": {
        "description": "The client's own, if it sent one that is sane; it is in the log.",
        "required": True,
        "schema": {"type": "string"},
    }
}
RETRY_AFTER = {
    "retry-after": {
        "description": "Seconds after which a retry is worth it.",
        "required": True,
        "schema": {"type": "integer", "minimum": 1},
    }
}
CHALLENGE = {
    "www-authenticate": {
        "description": "`Bearer`.",
        "required": True,
        "schema": {"type": "string"},
    }
}
ERROR_HEADERS = {401: CHALLENGE, 429: RETRY_AFTER, 503: RETRY_AFTER}
KEY: list[dict[str, list[str]]] = [{"key": []}, {}]
"""A key where there are keys, which the document cannot know."""
Docs = dict[int | str, dict[str, Any]]
Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class DirectRoute(APIRoute):
    """A route whose endpoint reads its request itself and gives a response, as Starlette's do.

    FastAPI's own reading of parameters and bodies, its dependencies and its writing of replies would find
    nothing to do, which takes them 0.15 ms.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The endpoint alone."""
        return cast("Endpoint", self.endpoint)


class DocumentedApp(FastAPI):
    """Adds to the document what FastAPI does not see: the models of bodies and replies, and the key."""

    def answer(self, path: str, **documented: Any) -> Callable[[Endpoint], Endpoint]:
        """Decorates the endpoint of a POST route. documented: as FastAPI's `post` takes it."""

        def add(endpoint: Endpoint) -> Endpoint:
            self.router.add_api_route(
                path, endpoint, methods=["POST"], route_class_override=DirectRoute, **documented
            )
            return endpoint

        return add

    def openapi(self) -> dict[str, Any]:
        """The document; made once, for it tells this server's limits."""
        if self.openapi_schema is None:
            document = super().openapi()
            components = document.setdefault("components", {})
            models = [(model, "validation") for model in (*BODIES, *SHAPES)]
            _, definitions = models_json_schema(models, ref_template=REF_TEMPLATE)  # type: ignore[arg-type]
            components["schemas"] = definitions["$defs"]
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for operation in (route for path in document["paths"].values() for route in path.values()):
                operation["responses"].pop("422", None)  # FastAPI's own, which nothing answers with
            complete_bodies(document, self.state.service.settings)
        return super().openapi()


def request_body(content: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """`openapi_extra` of a route that takes a body, by media type, and a key where there are keys."""
    media = {kind: {"schema": schema} for kind, schema in content.items()}
    return {"requestBody": {"required": True, "content": media}, "security": KEY}


def limits_of(neutral: Mapping[str, tuple[Any, ...]], ignored: Iterable[str]) -> str:
    """Sentences on the fields that are taken at some values alone, or ignored."""
    taken = [f"`{name}` ({_values(values)})" for name, values in sorted(neutral.items())]
    return (
        f"Refused by name unless they ask for nothing: {', '.join(taken)}. "
        f"Taken and ignored: {', '.join(f'`{name}`' for name in sorted(ignored))}."
    )


def _values(values: tuple[Any, ...]) -> str:
    return " or ".join(str(value) or "empty" for value in values) or "left out"


def errors(*statuses: int) -> Docs:
    """The refusals and failures of a route."""
    content = {JSON_TYPE: {"schema": reference(ErrorReply)}}
    return {
        status: {
            "description": ERRORS[status],
            "headers": REQUEST_ID | ERROR_HEADERS.get(status, {}),
            "content": content,
        }
        for status in statuses
    }


def _answered(content: dict[str, dict[str, Any]], description: str = "Answered") -> dict[str, Any]:
    media = {kind: {"schema": schema} for kind, schema in content.items()}
    return {"description": description, "headers": REQUEST_ID, "content": media}


def _answers(whole: type[BaseModel], *events: type[BaseModel], text: bool = False) -> Docs:
    """A route that answers about a clip: whole, as events, and as bare text."""
    content: dict[str, dict[str, Any]] = {JSON_TYPE: reference(whole)}
    content[EVENTS_TYPE] = _event(*events, ErrorReply)
    if text:
        content[TEXT_TYPE] = {"type": "string"}
    return {200: _answered(content), **errors(*ERRORS)}


def _event(*kinds: type[BaseModel]) -> dict[str, Any]:
    """One server-sent event of a stream, whose data is JSON of one of these kinds, or the end."""
    schema = {"anyOf": [reference(kind) for kind in kinds]}
    told = {"type": "string", "contentMediaType": JSON_TYPE, "contentSchema": schema}
    end = {"const": "[DONE]", "description": "The last event of a stream that ends well."}
    return {"type": "object", "properties": {"data": {"anyOf": [told, end]}}, "required": ["data"]}


def _told(whole: type[BaseModel], *statuses: int) -> Docs:
    """A route that tells of the server."""
    return {200: _answered({JSON_TYPE: reference(whole)}), **errors(*statuses)}


CHAT_DOCS = _answers(ChatCompletion, ChatCompletionChunk)
TRANSCRIPT_DOCS = _answers(TranscriptBody, TranscriptTextDelta, TranscriptTextDone, text=True)
MODEL_DOCS = _told(ModelEntry, 401, 404, 500, 503)
MODELS_DOCS = _told(ModelList, 401, 500, 503)
LOAD_DOCS = _told(LoadReply, 401, 500)
LIVE_DOCS: Docs = {
    200: _answered({JSON_TYPE: reference(ProbeReply)}, "Alive"),
    503: _answered({JSON_TYPE: reference(ProbeReply)}, "Hung, or lost for too long: start it again"),
}
READY_DOCS: Docs = {
    200: _answered({JSON_TYPE: reference(ProbeReply)}, "Ready"),
    503: _answered({JSON_TYPE: reference(ProbeReply)}, "Not now: send requests elsewhere"),
}
METRICS_DOCS: Docs = {200: _answered({TEXT_TYPE: {"type": "string"}}, "Prometheus' text format")}
WITH_KEY = {"security": KEY}
SPEECH_CHAT_BODY = request_body({FORM_TYPE: form_schema(ChatFields), JSON_TYPE: reference(SpeechChatBody)})
