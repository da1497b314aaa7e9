"""What /openapi.json says of the routes, which read their bodies and write their replies themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from server.http_body import FORM_TYPE, JSON_TYPE
from server.openai_schemas import ChatCompletionBody, TranscriptionFields, TranslationFields
from server.reply_schemas import (
    SHAPES,
    ChatCompletion,
    ChatCompletionChunk,
    ErrorReply,
    ModelEntry,
    ModelList,
    TranscriptBody,
    TranscriptTextDelta,
    TranscriptTextDone,
    reference,
)
from server.schemas import ChatFields, SpeechChatBody

EVENTS_TYPE = "text/event-stream"
REF_TEMPLATE = "#/components/schemas/{model}"
BODIES: tuple[type[BaseModel], ...] = (
    SpeechChatBody,
    ChatFields,
    ChatCompletionBody,
    TranscriptionFields,
    TranslationFields,
)
Docs = dict[int | str, dict[str, Any]]


class DocumentedApp(FastAPI):
    """Adds to the document what FastAPI does not see: the models of bodies and replies, and the key."""

    def openapi(self) -> dict[str, Any]:
        """The document; made once."""
        if self.openapi_schema is None:
            components = super().openapi().setdefault("components", {})
            models = [(model, "validation") for model in (*BODIES, *SHAPES)]
            _, definitions = models_json_schema(models, ref_template=REF_TEMPLATE)  # type: ignore[arg-type]
            components.setdefault("schemas", {}).update(definitions["$defs"])
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        return super().openapi()


def request_body(content: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """`openapi_extra` of a route that takes a body, by media type, and a key where there are keys."""
    media = {kind: {"schema": schema} for kind, schema in content.items()}
    return {"requestBody": {"required": True, "content": media}, "security": [{"key": []}, {}]}


def form_schema(schema: type[BaseModel]) -> dict[str, Any]:
    """A form of these fields and a file."""
    form = schema.model_json_schema(ref_template=REF_TEMPLATE)
    form.pop("$defs", None)
    form["properties"]["file"] = {"type": "string", "format": "binary"}
    form["required"] = [*form.get("required", ()), "file"]
    return form


def limits_of(neutral: Mapping[str, tuple[Any, ...]], ignored: Iterable[str]) -> str:
    """Sentences on the fields that are taken at some values alone, or ignored."""
    taken = [f"`{name}` ({_values(values)})" for name, values in sorted(neutral.items())]
    return (
        f"Refused by name unless they ask for nothing: {', '.join(taken)}. "
        f"Taken and ignored: {', '.join(f'`{name}`' for name in sorted(ignored))}."
    )


def _values(values: tuple[Any, ...]) -> str:
    return " or ".join(str(value) or "empty" for value in values) or "left out"


def _responses(whole: type[BaseModel], *events: type[BaseModel], text: bool = False) -> Docs:
    content: dict[str, Any] = {JSON_TYPE: {"schema": reference(whole)}}
    if events:
        content[EVENTS_TYPE] = {"schema": {"anyOf": [reference(event) for event in events]}}
    if text:
        content["text/plain"] = {"schema": {"type": "string"}}
    error = {"description": "Refused or failed", "content": {JSON_TYPE: {"schema": reference(ErrorReply)}}}
    return {200: {"description": "Answered", "content": content}, "4XX": error, "5XX": error}


CHAT_DOCS = _responses(ChatCompletion, ChatCompletionChunk)
TRANSCRIPT_DOCS = _responses(TranscriptBody, TranscriptTextDelta, TranscriptTextDone, text=True)
MODEL_DOCS = _responses(ModelEntry)
MODELS_DOCS = _responses(ModelList)
SPEECH_CHAT_BODY = request_body({FORM_TYPE: form_schema(ChatFields), JSON_TYPE: reference(SpeechChatBody)})
