"""What OpenAI's clients send, as far as this model can do it, and what becomes of the rest.

A field that would change the answer and cannot be honoured is refused by name, except at the value that
asks for nothing (`NEUTRAL`); one that changes nothing about the answer is taken and ignored (`IGNORED`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from server.errors import InvalidRequest
from server.schemas import PARTS, TEXT, ChatFields, Integer, StreamOptions, StrictModel

TRANSCRIBE = "Based on the attached audio, generate a comprehensive text transcription of the spoken content."
TRANSLATE = {"de": "Translate the audio clip into German."}
"""By target language. Both are the instructions that the published model was tested with."""
HEARD = "en"
"""The language that the model was trained to transcribe."""

Neutral = Mapping[str, tuple[Any, ...]]

CHAT_NEUTRAL: Neutral = {
    "n": (1,),
    "modalities": (["text"],),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "reasoning_effort": ("none",),
    "verbosity": ("medium",),
    "audio": (),
    "moderation": (),
    "web_search_options": (),
}
CHAT_IGNORED = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
TRANSCRIPTION_NEUTRAL: Neutral = {
    "language": (HEARD,),
    "languages": ([HEARD],),
    "prompt": ("",),
    "chunking_strategy": ("auto",),
    "timestamp_granularities": (),
    "include": (),
    "keywords": (),
    "known_speaker_names": (),
    "known_speaker_references": (),
}
TRANSLATION_NEUTRAL: Neutral = {"language": (HEARD,), "prompt": ("",), "timestamp_granularities": ()}
AUDIO_IGNORED = frozenset({"user", "stream_include_usage"})


class TextPart(StrictModel):
    """A piece of a message's text."""

    type: Literal["text"]
    text: str


class InputAudio(StrictModel):
    """A clip inside a message."""

    data: str = Field(description="The audio file in base64.")
    format: str | None = Field(None, description="Taken and ignored: the bytes decide the format.")


class AudioPart(StrictModel):
    """The clip that a message is about."""

    type: Literal["input_audio"]
    input_audio: InputAudio


def _kind_of_content(content: Any) -> str:
    return TEXT if isinstance(content, str) else PARTS


Part = Annotated[TextPart | AudioPart, Field(discriminator="type")]
Content = Annotated[
    Annotated[str, Tag(TEXT)] | Annotated[list[Part], Tag(PARTS)], Discriminator(_kind_of_content)
]


class Message(StrictModel):
    """One turn. Only one of the user is taken, after at most one of the system or developer."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content
    name: str | None = Field(None, description="Taken and ignored.")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        """A client that sends a reply back (`refusal: null`) is told about turns, not about that field."""
        if not isinstance(value, dict):
            return value
        return {name: part for name, part in value.items() if part is not None or name in cls.model_fields}


class ChatCompletionBody(StrictModel):
    """JSON body of `POST /v1/chat/completions`; null is as good as left out."""

    messages: list[Message] = Field(
        description="An optional system message, then one of the user: text parts, joined by line feeds, "
        "and at most one `input_audio` part. Without it the language model answers alone."
    )
    model: str | None = Field(None, description="Name of the served model; may be left out.")
    stream: bool = Field(False, description="Answer as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="With `stream` alone; else refused.")
    max_completion_tokens: Integer | None = Field(
        None, description="Longest answer in tokens (256 unless given)."
    )
    max_tokens: Integer | None = Field(None, description="The older name of `max_completion_tokens`.")
    temperature: float = Field(0.0, description="0 (greedy, and unlike OpenAI's the default) to 2.")
    top_p: float = Field(1.0, description="Above 0, at most 1 (off).")
    top_k: Integer = Field(0, description="0 (off) or more; not OpenAI's.")
    seed: Integer | None = Field(None, description="Makes sampling repeatable.")
    stop: str | list[str] | None = Field(None, description="Up to four strings that end the answer.")
    return_token_ids: bool = Field(False, description="Add the answer's token ids; not OpenAI's.")
    timeout_s: float | None = Field(None, description="Deadline in seconds; not OpenAI's.")

    @property
    def limit_name(self) -> str:
        """The name that this body gives the answer's length."""
        return "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"

    def fields(self) -> tuple[ChatFields, str | None]:
        """The question as a speech chat has it, and the clip in base64. Raises InvalidRequest."""
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            message = "max_tokens and max_completion_tokens are two names of one limit, and they differ."
            raise InvalidRequest(message, param="max_tokens")
        system, prompt, audio = read_messages(self.messages)
        shared = self.model_dump(include=set(ChatFields.model_fields) - {"max_tokens", "stream_options"})
        return ChatFields(
            prompt=prompt,
            system=system,
            max_tokens=limits.pop() if limits else None,
            stream_options=self.stream_options,
            **shared,
        ), audio


class TranscriptionFields(StrictModel):
    """The fields of `POST /v1/audio/transcriptions` beside the file."""

    model: str | None = Field(None, description="Name of the served model; may be left out.")
    response_format: Literal["json", "text"] = Field(
        "json", description="The other formats need timestamps, which this model does not make."
    )
    stream: bool = Field(False, description="Answer as server-sent events.")
    temperature: float = Field(0.0, description="0 (greedy) to 2.")
    top_p: float = Field(1.0, description="Above 0, at most 1 (off); not OpenAI's.")
    top_k: Integer = Field(0, description="0 (off) or more; not OpenAI's.")
    seed: Integer | None = Field(None, description="Makes sampling repeatable; not OpenAI's.")
    max_completion_tokens: Integer | None = Field(
        None, description="Longest text in tokens (--max-new-tokens unless given); not OpenAI's."
    )
    timeout_s: float | None = Field(None, description="Deadline in seconds; not OpenAI's.")

    @property
    def instruction(self) -> str:
        """What the model is asked; the same for every request."""
        return TRANSCRIBE

    def chat_fields(self, max_tokens: int) -> ChatFields:
        """The request as a speech chat has it. max_tokens: the longest text unless the client says less."""
        limit = max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        shared = self.model_dump(include=set(ChatFields.model_fields))
        return ChatFields(prompt=self.instruction, max_tokens=limit, **shared)


class TranslationFields(TranscriptionFields):
    """The fields of `POST /v1/audio/translations` beside the file."""

    to_language: Literal["de"] = Field(
        "de", description="The target; German unlike OpenAI's, for that is what this model was trained on."
    )

    @property
    def instruction(self) -> str:
        """What the model is asked, by target language."""
        return TRANSLATE[self.to_language]


def honoured(values: dict[str, Any], neutral: Neutral, ignored: frozenset[str]) -> dict[str, Any]:
    """`values` without nulls and what asks for nothing.

    Raises InvalidRequest for what cannot be done.
    """
    kept = {}
    for name, value in values.items():
        if value is None or name in ignored:
            continue
        if name not in neutral:
            kept[name] = value
        elif not any(_is_same(value, allowed) for allowed in neutral[name]):
            raise InvalidRequest(_unsupported(name, neutral[name]), param=name)
    return kept


def read_messages(messages: list[Message]) -> tuple[str | None, str, str | None]:
    """System text, instruction and clip (base64) of the one turn. Raises InvalidRequest."""
    if not messages or messages[-1].role != "user":
        raise _bad_messages("The last message must be the user's: the model answers one question.")
    *before, last = messages
    if [message.role in ("system", "developer") for message in before] not in ([], [True]):
        raise _bad_messages(
            "One user message is taken, after at most one system message: the model knows no earlier turns."
        )
    system, system_audio = _content(before[0]) if before else (None, [])
    prompt, audio = _content(last)
    if system_audio or len(audio) > 1:
        raise _bad_messages("At most one input_audio part is taken, in the user's message.")
    return system, prompt, audio[0] if audio else None


def _content(message: Message) -> tuple[str, list[str]]:
    """A message's text, its parts joined by line feeds, and its clips."""
    if isinstance(message.content, str):
        return message.content, []
    if not message.content:
        raise _bad_messages("A message has no content.")
    texts = [part.text for part in message.content if isinstance(part, TextPart)]
    clips = [part.input_audio.data for part in message.content if isinstance(part, AudioPart)]
    return "\n".join(texts), clips


def _bad_messages(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="messages")


def _is_same(value: Any, allowed: Any) -> bool:
    """Equal, and a truth value only if the other is one: in Python 1 == True."""
    return isinstance(value, bool) == isinstance(allowed, bool) and bool(value == allowed)


def _unsupported(name: str, allowed: tuple[Any, ...]) -> str:
    if not allowed:
        return f"{name} is not supported by this model."
    return f"{name}: this model supports {' or '.join(map(json.dumps, allowed))} alone."
