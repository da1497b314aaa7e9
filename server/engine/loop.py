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

    Raises EngineError if the core raised. Its state is unknown then, so it is not asked for anything more,
    not even to end its requests: whoever reads this error ends them.
    """
    try:
        while not stopping.is_set():
            has_work = core.wait(HEARTBEAT_S)
            send(core.step() if has_work else StepOutput(stats=core.stats()))
    except Exception as error:
        logger.error("engine step failed: %s", safe_traceback(error))
        raise EngineError(f"a step raised {type(error).__name__}") from error
    core.close()
