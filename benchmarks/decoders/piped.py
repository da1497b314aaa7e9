"""The child's side of a pipe: batches come in as lines of JSON, answers go out. The standard library alone.

It runs in the peers' own environments, which have nothing of ours.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import TextIO

Prompts = list[list[int]]
Decode = Callable[[Prompts, int], list[list[int]]]
"""Token ids of the prompts and the number of tokens of each answer -> token ids of the answers."""


def own_stdout() -> TextIO:
    """The pipe to the parent. What else writes to stdout, from here on, writes to stderr."""
    pipe = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return pipe


def serve(decode: Decode, pipe: TextIO, versions: dict[str, str]) -> None:
    """Say what runs here, then answer batches until stdin ends. Timed here: no pipe is in it."""
    _say(pipe, versions)
    for line in sys.stdin:
        asked = json.loads(line)
        begin = time.perf_counter()
        answers = decode(asked["prompts"], asked["num_tokens"])
        _say(pipe, {"seconds": time.perf_counter() - begin, "answers": answers})


def _say(pipe: TextIO, what: object) -> None:
    pipe.write(json.dumps(what) + "\n")
