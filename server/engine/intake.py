"""From a request to a sequence: tokenise, check that it fits, refuse early. Safe to call from any thread."""

from __future__ import annotations

import itertools
import secrets
import time

from model.config import SAMPLE_RATE, SpeechLLMConfig
from model.prompt import build_prompt
from model.tokenizer import Tokenizer
from server.engine.sequence import PromptTokens, Sequence, Timeline
from server.errors import ContextLengthExceeded, InvalidAudio, InvalidRequest
from server.types import GenerateRequest


class Intake:
    """Knows the model's limits and nothing of its load.

    max_context: tokens that one sequence may hold. merged_prompt: the only instruction answered, or None.
    """

    def __init__(
        self, config: SpeechLLMConfig, tokenizer: Tokenizer, max_context: int, merged_prompt: str | None
    ) -> None:
        self._config = config
        self._tokenizer = tokenizer
        self._max_context = max_context
        self._merged_prompt = merged_prompt
        self._orders = itertools.count()

    def sequence(self, request: GenerateRequest) -> Sequence:
        """A new sequence, in order of the calls.

        Raises InvalidRequest, InvalidAudio or ContextLengthExceeded.
        """
        timeline = Timeline(submitted=time.monotonic())
        self._check_merged(request)
        prompt = self._tokens(request)
        room = self._max_context - len(prompt)
        if room < 1 or len(prompt.adapter_ids) > self._max_context:
            parts = ["the system text"] * (request.system is not None) + ["the prompt"]
            parts += ["the clip"] * (prompt.num_audio > 0)
            raise ContextLengthExceeded(
                f"{' and '.join(parts)} take {len(prompt)} tokens ({prompt.num_audio} of them audio) "
                f"and leave no room for an answer: the model holds {self._max_context}",
                param="audio" if 2 * prompt.num_audio >= len(prompt) else _longer_text(request),
            )
        samples = 0 if request.waveform is None else len(request.waveform)
        window = self._config.window_samples
        seed = request.sampling.seed
        return Sequence(
            request_id=request.request_id,
            order=next(self._orders),
            prompt=prompt,
            sampling=request.sampling,
            max_tokens=min(request.sampling.max_tokens, room),
            seed=secrets.randbits(63) if seed is None else seed,
            timeline=timeline,
            instruction_key=prompt.instruction_key,
            audio_seconds=samples / SAMPLE_RATE,
            encode_seconds=-(-samples // window) * window / SAMPLE_RATE,
            deadline=request.deadline,
            queue_deadline=request.queue_deadline,
        )

    def _tokens(self, request: GenerateRequest) -> PromptTokens:
        has_audio = request.waveform is not None
        bos = self._config.llama.bos_token_id
        prompt = build_prompt(self._tokenizer, bos, request.prompt, request.system, has_audio)
        num_audio = 0
        if request.waveform is not None:
            num_audio = self._config.num_audio_tokens(len(request.waveform))
            if num_audio < 1:
                raise InvalidAudio("the clip is too short for the encoders to hear anything")
        key = request.audio_key if has_audio else b""
        # A merged model has its one scale in the weights: there is nothing left to ask the adapter.
        adapter_ids = prompt.adapter_ids if self._merged_prompt is None else ()
        return PromptTokens(prompt.left_ids, prompt.right_ids, num_audio, key, adapter_ids)

    def _check_merged(self, request: GenerateRequest) -> None:
        if self._merged_prompt is None:
            return
        if request.waveform is None:
            raise InvalidRequest("this deployment answers one instruction and needs audio", param="audio")
        if request.prompt != self._merged_prompt:
            raise InvalidRequest(
                "this deployment is merged for one instruction; /v1/models tells which", param="prompt"
            )


def _longer_text(request: GenerateRequest) -> str:
    """The field to shorten; characters say it as well as tokens."""
    return "system" if len(request.system or "") > len(request.prompt) else "prompt"
