"""What a request may ask for; the same rules, messages and `param` names for both transports."""

from __future__ import annotations

import math
from dataclasses import dataclass

from server.errors import InvalidAudio, InvalidRequest, ModelNotFound, PayloadTooLarge
from server.settings import Settings
from server.types import ModelInfo, SamplingParams

MAX_STOP_STRINGS = 4
MAX_TEMPERATURE = 2.0
MAX_TOP_K = 2**31 - 1
MAX_SHOWN = 2**64
"""Numbers from here on are not repeated to the client: JSON allows them thousands of digits."""


@dataclass(frozen=True, slots=True)
class ChatCommand:
    """One request, whatever it came by.

    audio: the clip as it was uploaded; None asks the language model alone. model, system, seed and
    max_tokens None: the server's own. timeout_s: seconds from the slot to the deadline.
    """

    prompt: str
    audio: bytes | None
    system: str | None = None
    model: str | None = None
    max_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    return_token_ids: bool = False
    timeout_s: float | None = None


def check_command(command: ChatCommand, settings: Settings, info: ModelInfo) -> None:
    """Raise the first fault: ModelNotFound, InvalidRequest, InvalidAudio or PayloadTooLarge."""
    if command.model and command.model != info.name:
        raise unknown_model()
    _check_text("prompt", command.prompt, settings.max_prompt_chars)
    if command.system is not None:
        _check_text("system", command.system, settings.max_prompt_chars)
    if info.merged_prompt is not None and command.prompt != info.merged_prompt:
        raise InvalidRequest("This deployment answers one instruction only; see /v1/models.", param="prompt")
    _check_audio_bytes(command.audio, settings.max_upload_bytes)
    check_sampling(command)
    _check_stop(command.stop, settings.max_prompt_chars)
    _check_lengths(command, settings)


def unknown_model() -> ModelNotFound:
    """The refusal of a model's name."""
    return ModelNotFound("This model is not served here; see /v1/models.", param="model")


def sampling_params(command: ChatCommand, settings: Settings) -> SamplingParams:
    """The checked command's sampling parameters, with the server's default for the length."""
    return SamplingParams(
        max_tokens=settings.default_max_tokens if command.max_tokens is None else command.max_tokens,
        temperature=command.temperature,
        top_p=command.top_p,
        top_k=command.top_k,
        seed=command.seed,
        stop=command.stop,
    )


def _check_text(name: str, text: str, max_chars: int) -> None:
    if len(text) > max_chars:
        raise InvalidRequest(f"{name} has {len(text)} characters; at most {max_chars} are taken.", param=name)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{name} is not valid Unicode (a lone surrogate).", param=name) from error


def _check_audio_bytes(audio: bytes | None, max_bytes: int) -> None:
    if audio is None:
        return
    if not audio:
        raise InvalidAudio("The audio is empty.")
    if len(audio) > max_bytes:
        raise PayloadTooLarge(
            f"The audio has {len(audio)} bytes; at most {max_bytes} are taken.", param="audio"
        )


def check_sampling(command: ChatCommand) -> None:
    """Raise InvalidRequest for a sampling parameter out of its range."""
    _check_range(
        "temperature", command.temperature, 0.0 <= command.temperature <= MAX_TEMPERATURE, "from 0 to 2"
    )
    _check_range("top_p", command.top_p, 0.0 < command.top_p <= 1.0, "above 0 and at most 1")
    _check_range("top_k", command.top_k, 0 <= command.top_k <= MAX_TOP_K, "0 (off) or more")
    if command.seed is not None:
        _check_range("seed", command.seed, -(2**63) <= command.seed < 2**63, "a 64-bit integer")


def _check_range(name: str, value: float, is_inside: bool, wanted: str) -> None:
    """NaN fails every comparison, so it is never inside."""
    if not is_inside:
        shown = f", not {value}" if abs(value) < MAX_SHOWN else ""
        raise InvalidRequest(f"{name} must be {wanted}{shown}.", param=name)


def _check_stop(stop: tuple[str, ...], max_chars: int) -> None:
    if len(stop) > MAX_STOP_STRINGS:
        raise InvalidRequest(f"stop takes at most {MAX_STOP_STRINGS} strings.", param="stop")
    for text in stop:
        if not text:
            raise InvalidRequest("stop must not hold an empty string.", param="stop")
        _check_text("stop", text, max_chars)


def _check_lengths(command: ChatCommand, settings: Settings) -> None:
    if command.max_tokens is not None:
        is_inside = 1 <= command.max_tokens <= settings.max_new_tokens
        _check_range("max_tokens", command.max_tokens, is_inside, f"from 1 to {settings.max_new_tokens}")
    timeout_s = command.timeout_s
    if timeout_s is not None and not (math.isfinite(timeout_s) and timeout_s > 0):
        raise InvalidRequest("timeout_s must be above 0.", param="timeout_s")
