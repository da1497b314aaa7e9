"""Between the generated messages and plain data; what proto3 presence means is decided here."""

from __future__ import annotations

from google.protobuf.message import DecodeError

from server.errors import EngineError, InvalidAudio, InvalidRequest
from server.pb import speech_pb2 as pb
from server.service import ChatCommand, ChatStream, ModelCard, Timings
from server.types import AudioInfo, Delta, Usage

CAPABILITIES = ("chat", "stream", "upload")
MAX_REQUEST_ID_CHARS = 128
OPTIONAL_FIELDS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "return_token_ids")


def parse_request(raw: bytes) -> pb.ChatRequest:
    """Decode a ChatRequest. Raises InvalidRequest if the bytes are none."""
    try:
        return pb.ChatRequest.FromString(raw)
    except DecodeError as error:
        raise InvalidRequest("The message is not a wavllm.v1.ChatRequest.") from error


def parse_upload(raw: bytes) -> pb.ChatUploadRequest:
    """Decode a ChatUploadRequest. Raises InvalidRequest if the bytes are none."""
    try:
        return pb.ChatUploadRequest.FromString(raw)
    except DecodeError as error:
        raise InvalidRequest("The message is not a wavllm.v1.ChatUploadRequest.") from error


def is_request_id(text: str) -> bool:
    """Whether a caller may name a request so: 1 to 128 visible ASCII characters, safe in headers and logs."""
    return 1 <= len(text) <= MAX_REQUEST_ID_CHARS and all("!" <= char <= "~" for char in text)


def audio_of(request: pb.ChatRequest) -> bytes:
    """The clip's bytes. Raises InvalidAudio if there are none."""
    data: bytes = request.audio.data  # each reading copies them
    if not data:
        raise InvalidAudio("The request has no audio: set audio.data.")
    return data


def command_of(request: pb.ChatRequest, audio: bytes | None, timeout_s: float | None) -> ChatCommand:
    """What the service takes. Unset fields of `generation` are left to the command's own defaults."""
    generation = request.generation
    given = {name: getattr(generation, name) for name in OPTIONAL_FIELDS if generation.HasField(name)}
    return ChatCommand(
        prompt=request.prompt,
        audio=audio,
        system=request.system if request.HasField("system") else None,
        model=request.model or None,
        stop=tuple(generation.stop),
        timeout_s=timeout_s,
        **given,
    )


def accepted_event(request_id: str, queue_position: int) -> pb.ChatEvent:
    """The first event of a stream."""
    return pb.ChatEvent(request_id=request_id, accepted=pb.Accepted(queue_position=queue_position))


def delta_event(request_id: str, delta: Delta, *, with_token_ids: bool) -> pb.ChatEvent | None:
    """The event for a delta, or None if it would say nothing."""
    token_ids = delta.token_ids if with_token_ids else ()
    if not delta.text and not token_ids:
        return None
    return pb.ChatEvent(request_id=request_id, delta=pb.Delta(text=delta.text, token_ids=token_ids))


def done_message(stream: ChatStream) -> pb.Done:
    """What a stream ends with. Raises EngineError if it has not ended."""
    if stream.finished is None or stream.timings is None:
        raise EngineError("The engine ended the request without an answer.")
    return pb.Done(
        finish_reason=stream.finished.finish_reason,
        usage=usage_message(stream.finished.usage),
        audio=audio_message(stream.audio),
        timings=timings_message(stream.timings),
    )


def response_message(
    request_id: str, deltas: list[Delta], done: pb.Done, *, with_token_ids: bool
) -> pb.ChatResponse:
    """The whole answer in one message; `done` is what the stream would have ended with."""
    token_ids = [token for delta in deltas for token in delta.token_ids] if with_token_ids else []
    return pb.ChatResponse(
        request_id=request_id,
        text="".join(delta.text for delta in deltas),
        token_ids=token_ids,
        finish_reason=done.finish_reason,
        usage=done.usage,
        audio=done.audio,
        timings=done.timings,
    )


def model_message(card: ModelCard) -> pb.ModelInfo:
    """The served model and its limits."""
    return pb.ModelInfo(
        id=card.id,
        max_audio_seconds=card.max_audio_seconds,
        min_audio_seconds=card.min_audio_seconds,
        formats=card.formats,
        max_context_tokens=card.max_context_tokens,
        max_new_tokens=card.max_new_tokens,
        max_prompt_chars=card.max_prompt_chars,
        max_upload_bytes=card.max_upload_bytes,
        capabilities=CAPABILITIES,
        random_weights=card.random_weights,
        merged_prompt=card.merged_prompt,
    )


def usage_message(usage: Usage) -> pb.Usage:
    """Token counts."""
    details = pb.PromptTokensDetails(audio_tokens=usage.audio_tokens, cached_tokens=usage.cached_tokens)
    return pb.Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        prompt_tokens_details=details,
    )


def audio_message(audio: AudioInfo | None) -> pb.AudioInfo | None:
    """The clip as received."""
    if audio is None:
        return None
    return pb.AudioInfo(duration_s=audio.duration_s, sample_rate=audio.sample_rate, channels=audio.channels)


def timings_message(timings: Timings) -> pb.Timings:
    """Milliseconds."""
    return pb.Timings(
        queue_ms=timings.queue_ms,
        decode_ms=timings.decode_ms,
        encode_ms=timings.encode_ms,
        ttft_ms=timings.ttft_ms,
        total_ms=timings.total_ms,
    )
