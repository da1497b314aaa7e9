"""`wavllm ask`: one question, answered in this process."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

from server.audio_decode import decode_audio
from server.audio_limits import AudioLimits
from server.cli_errors import CommandError, check_model_dir
from server.cli_progress import progress_bar
from server.engine.local import LocalEngine
from server.errors import EngineError, ServerError
from server.os_process import computing_environment
from server.settings import DEFAULT_MODEL_DIR
from server.types import (
    MAX_AUDIO_SECONDS,
    DecodedAudio,
    Delta,
    EngineConfig,
    Failed,
    Finished,
    GenerateRequest,
    SamplingParams,
)
from server.validation import ChatCommand, check_sampling


@dataclass(frozen=True, slots=True)
class Question:
    """What to ask, about which file ("-": standard input), and of which model."""

    file: str
    instruction: str
    sampling: SamplingParams
    system: str | None
    model: Path | None
    device: str
    dtype: str

    @property
    def model_dir(self) -> Path:
        """The directory to load."""
        return self.model or DEFAULT_MODEL_DIR


def answer(question: Question) -> None:
    """Print the answer as it comes. Raises CommandError."""
    try:
        _check(question)
        os.environ.update(computing_environment())  # before torch is loaded
        audio = decode_audio(_read(question.file), AudioLimits(max_seconds=MAX_AUDIO_SECONDS))
        asyncio.run(_ask(question, audio))
    except ServerError as error:
        raise CommandError(error.message) from error


def _check(question: Question) -> None:
    check_model_dir(question.model_dir, DEFAULT_MODEL_DIR)
    sampling = question.sampling
    if sampling.max_tokens < 1:
        raise CommandError("--max-tokens: must be 1 or more", 2)
    check_sampling(
        ChatCommand(
            prompt=question.instruction,
            audio=None,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=sampling.seed,
        )
    )


def _read(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise CommandError(f"{file}: {error.strerror}") from error


async def _ask(question: Question, audio: DecodedAudio) -> None:
    with progress_bar("Loading the model") as report:
        config = EngineConfig(question.model_dir, device=question.device, dtype=question.dtype)
        engine = LocalEngine(config, on_progress=report)
        try:
            await engine.start()
        except BaseException:
            await engine.stop()
            raise
    try:
        if engine.info.random_weights:
            typer.echo("wavllm: the weights are random, the answer means nothing", err=True)
        await _print_answer(engine, _request(question, audio))
    finally:
        await engine.stop()


def _request(question: Question, audio: DecodedAudio) -> GenerateRequest:
    return GenerateRequest(
        request_id="ask",
        prompt=question.instruction,
        waveform=audio.waveform,
        audio_key=audio.key,
        sampling=question.sampling,
        system=question.system,
    )


async def _print_answer(engine: LocalEngine, request: GenerateRequest) -> None:
    async for event in engine.generate(request):
        match event:
            case Delta(text=text):
                sys.stdout.write(text)
                sys.stdout.flush()
            case Finished():
                sys.stdout.write("\n")
                return
            case Failed(error=error):
                raise error
    raise EngineError("The engine ended without an answer.")
