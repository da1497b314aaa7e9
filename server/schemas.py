"""Bodies that clients send: strict types, unknown fields refused, errors that name the field."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from server.errors import InvalidAudio, InvalidRequest
from server.validation import ChatCommand

Body = TypeVar("Body", bound=BaseModel)

MAX_SHOWN_CHARS = 200
"""Of a client's own names and of pydantic's messages, which may repeat what the client sent."""


def _whole(value: Any) -> Any:
    """To JSON Schema 5.0 is an integer; some languages write every number so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Integer = Annotated[int, BeforeValidator(_whole)]


class StrictModel(BaseModel):
    """No coercion, no unknown fields."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class AudioData(StrictModel):
    """A clip inside JSON."""

    data: str = Field(description="The audio file in base64; its bytes decide the format.")


class StreamOptions(StrictModel):
    """What a stream carries besides the answer."""

    include_usage: bool = Field(False, description="Send a last chunk with the token counts.")
    include_obfuscation: bool = Field(False, description="Taken and ignored: nothing is padded here.")


class ChatFields(StrictModel):
    """The fields of a speech chat beside the clip; the same in JSON and in a form."""

    prompt: str = Field(description="The instruction; may be empty, is never trimmed.")
    system: str | None = Field(None, description="Replaces the template's system text.")
    model: str | None = Field(None, description="Name of the served model; may be left out.")
    stream: bool = Field(False, description="Answer as server-sent events.")
    stream_options: StreamOptions | None = Field(None, description="With `stream` alone; else refused.")
    max_tokens: Integer | None = Field(None, description="Longest answer in tokens (256 unless given).")
    temperature: float = Field(0.0, description="0 (greedy) to 2.")
    top_p: float = Field(1.0, description="Above 0, at most 1 (off).")
    top_k: Integer = Field(0, description="0 (off) or more.")
    seed: Integer | None = Field(None, description="Makes sampling repeatable.")
    stop: str | list[str] | None = Field(None, description="Up to four strings that end the answer.")
    return_token_ids: bool = Field(False, description="Add the answer's token ids.")
    timeout_s: float | None = Field(None, description="Deadline in seconds, at most --request-timeout.")

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a usage chunk."""
        return self.stream_options is not None and self.stream_options.include_usage

    def command(self, audio: bytes | None) -> ChatCommand:
        """The request as the service takes it."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return ChatCommand(
            prompt=self.prompt,
            audio=audio,
            system=self.system,
            model=self.model,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            stop=stop,
            return_token_ids=self.return_token_ids,
            timeout_s=self.timeout_s,
        )


class SpeechChatBody(ChatFields):
    """JSON body of `POST /v1/speech/chat`."""

    audio: AudioData


def parse_body(schema: type[Body], values: dict[str, Any]) -> Body:
    """Validate. Raises InvalidRequest for the first fault, with the field as `param` and never its value."""
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        raise _invalid(error.errors(include_input=False, include_url=False)[0]) from error


def missing_audio(field: str) -> InvalidAudio:
    """The refusal of a request without a clip."""
    return InvalidAudio(f"The audio is missing: send it as {field}.")


def _invalid(fault: Any) -> InvalidRequest:
    name = ".".join(part for part in fault["loc"] if isinstance(part, str) and part not in _VARIANTS)
    root = name.partition(".")[0]
    # OpenAI's clients know a fault anywhere in the messages as one of `messages`.
    param = root if root == "messages" else name[:MAX_SHOWN_CHARS]
    if not root:
        return InvalidRequest("The name of a field is not valid Unicode.")
    if fault["type"] == "extra_forbidden":
        return InvalidRequest(f"There is no field {name[:MAX_SHOWN_CHARS]}.", param=param)
    if fault["type"] == "missing":
        if root == "audio":
            return missing_audio("audio.data")
        return InvalidRequest(f"{name} is missing.", param=param)
    # pydantic's own words for this one name the class.
    text = "Input should be an object" if fault["type"] == "model_type" else fault["msg"][:MAX_SHOWN_CHARS]
    message = f"{name}: {text}."
    return InvalidAudio(message) if root == "audio" else InvalidRequest(message, param=param)


TEXT, PARTS = "a text", "a list of parts"
_VARIANTS = frozenset({"str", "list[str]", TEXT, PARTS})
"""What pydantic adds to the path of a union's faults."""
