"""The shapes of replies, for /openapi.json and for the tests that hold real replies to them.

The replies are built in `http_replies` and `http_errors`; extra fields are forbidden so that neither drifts.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

FinishReason = Literal["stop", "length"]


class Shape(BaseModel):
    """Exactly these fields."""

    model_config = ConfigDict(strict=True, extra="forbid")


class ErrorDetail(Shape):
    """What went wrong. param: the field at fault."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorReply(Shape):
    """Every error of every route."""

    error: ErrorDetail


class PromptTokensDetails(Shape):
    """Of the prompt's tokens: those of the clip, and those found in the cache."""

    audio_tokens: int
    cached_tokens: int


class CompletionUsage(Shape):
    """Tokens of a chat."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class ReceivedAudio(Shape):
    """The clip as it was received."""

    duration_s: float
    sample_rate: int
    channels: int


class ReplyTimings(Shape):
    """Milliseconds."""

    queue_ms: float
    decode_ms: float
    encode_ms: float
    ttft_ms: float
    total_ms: float


class AnswerMessage(Shape):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(Shape):
    """The one answer; token_ids when asked for."""

    index: Literal[0]
    message: AnswerMessage
    logprobs: None
    finish_reason: FinishReason
    token_ids: list[int] | None = None


class ChatCompletion(Shape):
    """A whole answer. audio: null without a clip; audio and timings are not OpenAI's."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[Choice]
    usage: CompletionUsage
    audio: ReceivedAudio | None
    timings: ReplyTimings


class ChoiceDelta(Shape):
    """A piece of the answer."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    token_ids: list[int] | None = None


class ChunkChoice(Shape):
    """The one answer's next piece."""

    index: Literal[0]
    delta: ChoiceDelta
    logprobs: None
    finish_reason: FinishReason | None


class ChatCompletionChunk(Shape):
    """One event of a streamed answer. audio, timings: in the last with a choice. usage: when asked for."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    system_fingerprint: None
    choices: list[ChunkChoice]
    usage: CompletionUsage | None = None
    audio: ReceivedAudio | None = None
    timings: ReplyTimings | None = None


class InputTokenDetails(Shape):
    """Of the input's tokens: those of the clip, and those of the instruction."""

    audio_tokens: int
    text_tokens: int


class TranscriptUsage(Shape):
    """Tokens of a transcription or translation."""

    type: Literal["tokens"]
    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_token_details: InputTokenDetails


class TranscriptBody(Shape):
    """A whole transcription or translation. finish_reason is not OpenAI's: `length` means cut."""

    text: str
    usage: TranscriptUsage
    finish_reason: FinishReason


class TranscriptTextDelta(Shape):
    """A piece of a streamed transcription."""

    type: Literal["transcript.text.delta"]
    delta: str


class TranscriptTextDone(TranscriptBody):
    """The end of a streamed transcription, with all of it."""

    type: Literal["transcript.text.done"]


class ModelEntry(Shape):
    """The served model, its limits and what it can be asked for.

    fingerprint: changes with the files that the model was loaded from.
    """

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_audio_seconds: float
    min_audio_seconds: float
    max_context_tokens: int
    max_new_tokens: int
    max_prompt_chars: int
    max_upload_bytes: int
    formats: list[str]
    capabilities: list[str]
    merged_prompt: str | None
    random_weights: bool
    fingerprint: str


class ModelList(Shape):
    """All served models: one."""

    object: Literal["list"]
    data: list[ModelEntry]


class ProbeReply(Shape):
    """What a probe says."""

    status: Literal["alive", "hung", "starting", "ready", "draining", "failed", "stopped"]


class LoadReply(Shape):
    """What a balancer may weigh. num_requests_waiting: slots that the engine has not begun with."""

    state: Literal["starting", "ready", "draining", "failed", "stopped"]
    num_requests_running: int
    num_requests_waiting: int
    queue_audio_seconds: float
    inflight_bytes: int
    kv_cache_usage: float


SHAPES: tuple[type[BaseModel], ...] = (
    ErrorReply,
    ChatCompletion,
    ChatCompletionChunk,
    TranscriptBody,
    TranscriptTextDelta,
    TranscriptTextDone,
    ModelEntry,
    ModelList,
    ProbeReply,
    LoadReply,
)


def reference(shape: type[BaseModel]) -> dict[str, Any]:
    """The shape by name, as other parts of /openapi.json refer to it."""
    return {"$ref": f"#/components/schemas/{shape.__name__}"}
