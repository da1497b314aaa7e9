"""Answers in the shape of OpenAI's chat completions, with what speech adds at the top level."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass, field
from typing import Any

from server.openai_schemas import TRANSCRIBE, TRANSLATE
from server.service import ChatStream, ModelCard
from server.types import Delta, Finished, Usage


@dataclass(slots=True)
class Answer:
    """An answer as it grows: what the chunks and the whole reply of one request have in common."""

    request_id: str
    model: str
    return_token_ids: bool
    created: int = field(default_factory=lambda: int(time.time()))
    text: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        """Take the next piece."""
        self.text.append(delta.text)
        self.token_ids.extend(delta.token_ids)

    def completion(self, stream: ChatStream) -> dict[str, Any]:
        """The whole reply, once the stream is exhausted."""
        finished = _finished(stream)
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": "".join(self.text), "refusal": None},
            "logprobs": None,
            "finish_reason": finished.finish_reason,
        }
        if self.return_token_ids:
            choice["token_ids"] = self.token_ids
        usage = {"usage": usage_json(finished.usage)}
        return self._head("chat.completion") | {"choices": [choice]} | usage | speech_json(stream)

    def role_chunk(self) -> dict[str, Any]:
        """First chunk of a stream."""
        return self._chunk({"role": "assistant", "content": ""})

    def delta_chunk(self, delta: Delta) -> dict[str, Any] | None:
        """The chunk of one piece; None if it holds nothing that the client asked for."""
        content: dict[str, Any] = {"content": delta.text} if delta.text else {}
        if self.return_token_ids and delta.token_ids:
            content["token_ids"] = list(delta.token_ids)
        return self._chunk(content) if content else None

    def finish_chunk(self, stream: ChatStream) -> dict[str, Any]:
        """Last chunk with a choice."""
        return self._chunk({}, _finished(stream).finish_reason) | speech_json(stream)

    def usage_chunk(self, stream: ChatStream) -> dict[str, Any]:
        """The chunk without choices that carries the token counts."""
        usage = usage_json(_finished(stream).usage)
        return self._head("chat.completion.chunk") | {"choices": [], "usage": usage}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.request_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
        }


@dataclass(slots=True)
class Transcript:
    """A transcription or translation as it grows. `finish_reason` is not OpenAI's, but a cut must be seen."""

    text: list[str] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        """Take the next piece."""
        self.text.append(delta.text)

    def whole(self, stream: ChatStream) -> dict[str, Any]:
        """The whole reply, once the stream is exhausted."""
        finished = _finished(stream)
        return {
            "text": "".join(self.text),
            "usage": transcript_usage_json(finished.usage),
            "finish_reason": finished.finish_reason,
        }

    def delta_event(self, delta: Delta) -> dict[str, Any]:
        """The event of one piece."""
        return {"type": "transcript.text.delta", "delta": delta.text}

    def done_event(self, stream: ChatStream) -> dict[str, Any]:
        """Last event of a stream: the whole reply again."""
        return {"type": "transcript.text.done"} | self.whole(stream)


def usage_json(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage`."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "audio_tokens": usage.audio_tokens,
            "cached_tokens": usage.cached_tokens,
        },
    }


def transcript_usage_json(usage: Usage) -> dict[str, Any]:
    """OpenAI's `usage` of a transcription."""
    return {
        "type": "tokens",
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "input_token_details": {
            "audio_tokens": usage.audio_tokens,
            "text_tokens": usage.prompt_tokens - usage.audio_tokens,
        },
    }


def speech_json(stream: ChatStream) -> dict[str, Any]:
    """`audio` (null without a clip) and `timings`."""
    timings = dataclasses.asdict(stream.timings) if stream.timings else {}
    return {
        "audio": dataclasses.asdict(stream.audio) if stream.audio else None,
        "timings": {name: round(value, 3) for name, value in timings.items()},
    }


def model_json(card: ModelCard) -> dict[str, Any]:
    """One entry of `GET /v1/models`."""
    limits = dataclasses.asdict(card)
    head = {"id": limits.pop("id"), "object": "model", "created": limits.pop("created")}
    return head | {
        "owned_by": "wavllm",
        **limits,
        "capabilities": capabilities(card.merged_prompt),
    }


def capabilities(merged_prompt: str | None) -> list[str]:
    """What the model can be asked for here; merged for one instruction, only what that instruction does."""
    tasks = {"transcription": [TRANSCRIBE], "translation": list(TRANSLATE.values())}
    if merged_prompt is None:
        return ["speech_chat", "chat", *tasks]
    return ["speech_chat", *(task for task, prompts in tasks.items() if merged_prompt in prompts)]


def _finished(stream: ChatStream) -> Finished:
    if stream.finished is None:
        raise RuntimeError("the stream has not ended")
    return stream.finished
