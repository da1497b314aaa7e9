"""`wavllm serve` that also tells, a line of JSON on stdout for each request, what its inner parts took.

    python -m benchmarks.peers.timed_server --model DIR --http-port 8000 --grpc-port 50051

{"decode_ms": number} of reading the audio file, then {"engine_ms": number} of the engine, from the request's
submission there to its last token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

import uvloop

from server.audio_cache import CachedDecoder
from server.audio_decode import AudioDecoder
from server.audio_limits import AudioLimits
from server.engine_process import EngineProcess
from server.serve import serve
from server.service import SpeechService
from server.settings import Settings, load_settings
from server.types import DecodedAudio, Finished, StepOutput

TELL_S = 0.002
"""After the client has its answer, and before it begins to wait for what is told."""


class TimedEngine(EngineProcess):
    """Tells of every answer's own time."""

    def _deliver(self, output: StepOutput) -> None:
        for event in output.events:
            if isinstance(event, Finished):
                tell("engine_ms", event.timings.total_ms)
        super()._deliver(output)


class TimedDecoder(CachedDecoder):
    """Tells of every clip's time; unless it is known, that is the way to the worker process and back."""

    async def decode(self, data: bytes) -> DecodedAudio:
        """As the decoder does."""
        begin = time.monotonic()
        audio = await super().decode(data)
        tell("decode_ms", 1e3 * (time.monotonic() - begin))
        return audio


def tell(name: str, value: float) -> None:
    """One line, a moment later: what is measured must not wait for it."""
    asyncio.get_running_loop().call_later(TELL_S, _write, name, value)


def _write(name: str, value: float) -> None:
    sys.stdout.write(json.dumps({name: value}) + "\n")
    sys.stdout.flush()


def make_service(settings: Settings) -> SpeechService:
    """The service as `wavllm serve` has it, of parts that tell."""

    def make_decoder(max_audio_s: float) -> TimedDecoder:
        limits = AudioLimits(max_seconds=max_audio_s, min_seconds=settings.min_audio_seconds)
        return TimedDecoder(AudioDecoder(limits, settings.audio_workers))

    return SpeechService(TimedEngine(settings.engine_config()), make_decoder, settings)


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--http-port", type=int, required=True)
    parser.add_argument("--grpc-port", type=int, required=True)
    given = vars(parser.parse_args())
    fixed = {"host": "127.0.0.1", "metrics_port": 0, "drain_delay": 0, "device": "cpu", "dtype": "float32"}
    settings = load_settings(given | fixed)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(settings, make_service(settings)))


if __name__ == "__main__":
    main()
