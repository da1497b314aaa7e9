"""Run as a program: the whole server over the fakes, its settings from the environment.

FAKE_LOAD_S, FAKE_STEP_S: how long loading and each token take. FAKE_LOAD_ERROR: loading fails with it.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys

import uvloop
from fakes import FakeDecoder, FakeEngine

from server.errors import EngineError
from server.logs import configure
from server.serve import StartFailure, serve
from server.service import SpeechService
from server.settings import Settings


class SlowLoadingEngine(FakeEngine):
    """Takes its time to load."""

    async def start(self) -> None:
        await asyncio.sleep(float(os.environ.get("FAKE_LOAD_S", "0")))
        await super().start()


def main() -> int:
    """The exit code, as `wavllm serve` has it."""
    settings = Settings()
    configure(settings.log_format, settings.log_level)
    error = os.environ.get("FAKE_LOAD_ERROR")
    engine = SlowLoadingEngine(
        step_s=float(os.environ.get("FAKE_STEP_S", "0")), load_error=EngineError(error) if error else None
    )
    service = SpeechService(engine, lambda _: FakeDecoder(), settings)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(settings, service))
    except StartFailure as failure:
        sys.stderr.write(f"{failure}\n")
        return 1
    logging.getLogger(__name__).info("ended", extra={"num_frozen": gc.get_freeze_count()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
