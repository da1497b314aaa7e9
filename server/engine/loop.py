"""The loop that steps an engine, the same in a child's main thread and in a thread of this process."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from server.engine.factory import Core, safe_traceback
from server.errors import EngineError
from server.types import StepOutput

HEARTBEAT_S = 0.25
"""An idle engine gives a sign of life this often; also the longest it takes to see that it shall stop."""

logger = logging.getLogger(__name__)


def run_engine(core: Core, send: Callable[[StepOutput], None], stopping: threading.Event) -> None:
    """Step `core` in the calling thread until `stopping` is set, and hand every output to `send`.

    A step gives one output, an idle `HEARTBEAT_S` gives one without events: outputs are the heartbeat.
    `send` must not raise. Closes the core at the end.

    Raises EngineError after a step that raised: its requests have been ended by then, and the core, whose
    state nobody knows any more, is not used again.
    """
    while not stopping.is_set():
        if core.wait(HEARTBEAT_S):
            send(_step(core, send))
        else:
            send(StepOutput(stats=core.stats()))
    core.close()


def _step(core: Core, send: Callable[[StepOutput], None]) -> StepOutput:
    try:
        return core.step()
    except Exception as error:
        logger.error("engine step failed: %s", safe_traceback(error))
        send(core.fail_all(EngineError("the engine failed while it worked on this request; please retry")))
        raise EngineError(f"a step raised {type(error).__name__}") from error
