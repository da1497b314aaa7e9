"""The routes of OpenAI's API: chat completions, transcriptions and translations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import Request
from starlette.responses import PlainTextResponse, Response

from server.errors import InvalidRequest
from server.http_body import (
    FORM_TYPE,
    JSON_TYPE,
    content_type,
    decode_base64,
    form_fields,
    form_file,
    parse_scalar,
    read_form,
    read_json,
)
from server.http_body_docs import form_schema
from server.http_errors import JsonResponse
from server.http_exchange import Ask, Reply, chat_ask, exchange
from server.http_openapi import CHAT_DOCS, TRANSCRIPT_DOCS, DocumentedApp, limits_of, request_body
from server.http_replies import Transcript
from server.http_stream import DONE, KEEP_ALIVE, Events, event
from server.openai_schemas import (
    AUDIO_IGNORED,
    CHAT_IGNORED,
    CHAT_NEUTRAL,
    TRANSCRIPTION_NEUTRAL,
    TRANSLATION_NEUTRAL,
    ChatCompletionBody,
    Neutral,
    TranscriptionFields,
    TranslationFields,
    honoured,
)
from server.reply_schemas import reference
from server.schemas import missing_audio, parse_body
from server.service import ChatStream, SpeechService
from server.types import Delta

TEXT_FIELDS = ("model", "response_format", "to_language")
AUDIO_NAMES = {"max_tokens": "max_completion_tokens", "prompt": "model"}
"""The instruction is the route's: where it is refused, this model cannot serve the route."""


def add_openai_routes(app: DocumentedApp, service: SpeechService) -> None:
    """`POST /v1/chat/completions`, `/v1/audio/transcriptions`, `/v1/audio/translations`."""

    @app.answer(
        "/v1/chat/completions",
        responses=CHAT_DOCS,
        description="OpenAI's chat, about one clip or with the language model alone. "
        + limits_of(CHAT_NEUTRAL, CHAT_IGNORED),
        openapi_extra=request_body({JSON_TYPE: reference(ChatCompletionBody)}),
    )
    async def chat_completions(request: Request) -> Response:
        return await exchange(request, service, read_chat_completion)

    @app.answer(
        "/v1/audio/transcriptions",
        responses=TRANSCRIPT_DOCS,
        description="What is said, in English. " + limits_of(TRANSCRIPTION_NEUTRAL, AUDIO_IGNORED),
        openapi_extra=request_body(
            {FORM_TYPE: form_schema(TranscriptionFields, TRANSCRIPTION_NEUTRAL, AUDIO_IGNORED)}
        ),
    )
    async def transcriptions(request: Request) -> Response:
        return await exchange(request, service, read_transcription)

    @app.answer(
        "/v1/audio/translations",
        responses=TRANSCRIPT_DOCS,
        description="What is said, in German, where OpenAI's route translates to English. "
        + limits_of(TRANSLATION_NEUTRAL, AUDIO_IGNORED),
        openapi_extra=request_body(
            {FORM_TYPE: form_schema(TranslationFields, TRANSLATION_NEUTRAL, AUDIO_IGNORED)}
        ),
    )
    async def translations(request: Request) -> Response:
        return await exchange(request, service, read_translation)


async def read_chat_completion(request: Request, service: SpeechService) -> Ask:
    """The body of a chat completion."""
    if content_type(request) != JSON_TYPE:
        raise InvalidRequest(f"The Content-Type must be {JSON_TYPE}.")
    values = honoured(await read_json(request, service.settings), CHAT_NEUTRAL, CHAT_IGNORED)
    body = parse_body(ChatCompletionBody, values)
    fields, data = body.fields()
    audio = None
    if data is not None:
        audio = await decode_base64(data, service.settings.max_upload_bytes, "input_audio.data")
    names = {"prompt": "messages", "system": "messages", "max_tokens": body.limit_name}
    return chat_ask(fields, audio, names)


async def read_transcription(request: Request, service: SpeechService) -> Ask:
    """The form of a transcription."""
    return await _read_audio_form(request, service, TranscriptionFields, TRANSCRIPTION_NEUTRAL)


async def read_translation(request: Request, service: SpeechService) -> Ask:
    """The form of a translation."""
    return await _read_audio_form(request, service, TranslationFields, TRANSLATION_NEUTRAL)


async def _read_audio_form(
    request: Request, service: SpeechService, schema: type[TranscriptionFields], neutral: Neutral
) -> Ask:
    if content_type(request) != FORM_TYPE:
        raise InvalidRequest(f"The Content-Type must be {FORM_TYPE}.")
    form = await read_form(request, service.settings)
    file = form_file(form)
    texts = [*TEXT_FIELDS, *neutral, *AUDIO_IGNORED]
    parsers: dict[str, Callable[[str], Any]] = dict.fromkeys(schema.model_fields, parse_scalar)
    parsers |= dict.fromkeys(texts, str)
    fields = parse_body(schema, honoured(form_fields(form, parsers), neutral, AUDIO_IGNORED))
    if file is None:
        raise missing_audio("the file field `file`")
    is_text = fields.response_format == "text"

    def reply(request_id: str, model: str) -> Reply:
        return TranscriptReply(is_text=is_text)

    command = fields.chat_fields(service.settings.max_new_tokens).command(file)
    return Ask(command, reply, fields.stream, AUDIO_NAMES)


class TranscriptReply:
    """OpenAI's transcription or translation: JSON, the bare text, or events."""

    def __init__(self, *, is_text: bool) -> None:
        self._is_text = is_text
        self._transcript = Transcript()
        self.add = self._transcript.add

    def whole(self, stream: ChatStream) -> Response:
        """The text, and in JSON the tokens and why it ended; as plain text a header tells that."""
        reply = self._transcript.whole(stream)
        if self._is_text:
            headers = {"x-finish-reason": reply["finish_reason"]}
            return PlainTextResponse(reply["text"], headers=headers)
        return JsonResponse(reply)

    def events(self, stream: ChatStream) -> tuple[bytes, Events]:
        """`transcript.text.delta` for each piece with text, `transcript.text.done`, and the end."""
        transcript = self._transcript

        def events(delta: Delta | None) -> bytes:
            if delta is None:
                return event(transcript.done_event(stream)) + DONE
            transcript.add(delta)
            return event(transcript.delta_event(delta)) if delta.text else b""

        return KEEP_ALIVE, events
