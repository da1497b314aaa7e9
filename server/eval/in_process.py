"""Answers from an engine in this process."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from server.audio_decode import decode_audio
from server.audio_limits import AudioLimits
from server.engine.local import LocalEngine
from server.errors import ServerError
from server.eval.types import Answer, EvalError, Progress, Row
from server.types import (
    MAX_AUDIO_SECONDS,
    DecodedAudio,
    Delta,
    EngineConfig,
    EngineState,
    Failed,
    Finished,
    GenerateRequest,
    SamplingParams,
)


class LocalAnswerer:
    """Asks a model that it loads itself, and batches what is asked together; close it with `aclose`.

    on_progress: told how far loading is.
    """

    def __init__(self, config: EngineConfig, max_tokens: int, on_progress: Progress | None = None) -> None:
        self._sampling = SamplingParams(max_tokens=max_tokens)
        self._limits = AudioLimits(max_seconds=MAX_AUDIO_SECONDS)
        self._engine = LocalEngine(config, on_progress=on_progress)

    @property
    def has_random_weights(self) -> bool:
        """Whether nobody trained the model."""
        return self._engine.info.random_weights

    async def start(self) -> None:
        """Load the model. Raises EvalError with the reason if it does not load."""
        try:
            await self._engine.start()
        except ServerError as error:
            await self.aclose()
            raise EvalError(error.message) from error
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Free the model."""
        await self._engine.stop()

    async def answer(self, row: Row) -> Answer:
        """Decode, ask, collect."""
        begin = time.monotonic()
        try:
            audio = await asyncio.to_thread(self._decode, row.audio)
            text, finish_reason = await self._collect(self._request(row, audio))
        except OSError as error:
            return Answer(error=f"{row.audio}: {error.strerror}")
        except ServerError as error:
            health = self._engine.health()
            if health.state is not EngineState.READY:
                raise EvalError(f"the engine broke down: {health.detail}") from error
            return Answer(error=f"{error.code}: {error.message}")
        return Answer(text, finish_reason, round((time.monotonic() - begin) * 1e3, 3))

    def _decode(self, file: Path) -> DecodedAudio:
        return decode_audio(file.read_bytes(), self._limits)

    def _request(self, row: Row, audio: DecodedAudio) -> GenerateRequest:
        return GenerateRequest(row.key, row.prompt, audio.waveform, audio.key, self._sampling)

    async def _collect(self, request: GenerateRequest) -> tuple[str, str | None]:
        pieces: list[str] = []
        finish_reason = None
        async for event in self._engine.generate(request):
            match event:
                case Delta(text=text):
                    pieces.append(text)
                case Finished():
                    finish_reason = event.finish_reason
                case Failed(error=error):
                    raise error
        return "".join(pieces), finish_reason
