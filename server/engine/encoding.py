"""The encoder pass under way: a slice of it in every step, so that no clip, however long, stalls answers."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from model.pieces import Pieces
from server.engine.runner import PieceClock, Runner

Waveform = npt.NDArray[np.float32]
Clips = dict[bytes, Waveform]
PLANNED = 0.65
"""Of a slice, what is planned for. The rest is for pieces that last longer than expected, and for the decode
step, which takes longer after a slice.
"""


@dataclass(frozen=True, slots=True)
class EncoderPass:
    """clips: [T] float32 at 16 kHz by key. pieces: what is left to compute. begun: monotonic time. clock: of
    the pieces.
    """

    clips: Clips
    pieces: Pieces[dict[bytes, Tensor]]
    begun: float
    clock: PieceClock = field(default_factory=PieceClock)


class Encoding:
    """At most one pass at a time. The clips of a pass that failed are encoded one by one after it.

    slice_s: seconds by which it may make a step longer, but for one step in a hundred.
    """

    def __init__(self, runner: Runner, slice_s: float = float("inf")) -> None:
        self.slice_s = slice_s
        self._runner = runner
        self._pass: EncoderPass | None = None
        self._alone: deque[tuple[bytes, Waveform]] = deque()

    @property
    def keys(self) -> tuple[bytes, ...]:
        """Clips that are being encoded or will be without being asked for again."""
        under_way = self._pass.clips if self._pass is not None else {}
        return (*under_way, *(key for key, _ in self._alone))

    @property
    def seconds(self) -> float:
        """Since the pass was begun."""
        return time.monotonic() - self._pass.begun if self._pass is not None else 0.0

    def begin(self, clips: Clips) -> None:
        """Encode these together. Only while none is under way."""
        assert self._pass is None, "an encoder pass is under way"
        self._pass = EncoderPass(clips, self._runner.encoding(clips), time.monotonic())

    def drop(self, is_unwanted: Callable[[bytes], bool]) -> None:
        """Stop encoding what nobody waits for any more. A pass goes on while one of its clips is wanted."""
        self._alone = deque(item for item in self._alone if not is_unwanted(item[0]))
        if self._pass is not None and all(map(is_unwanted, self._pass.clips)):
            self._pass = None

    def advance(self, share: float = 1.0) -> Mapping[bytes, Tensor]:
        """A share of a slice. Embeddings [n, D] by key if the pass has ended. Raises what the model does."""
        if self._pass is None and self._alone:
            self.begin(dict([self._alone.popleft()]))
        if self._pass is None:
            return {}
        budget_s = share * PLANNED * self.slice_s
        return self._runner.advance(self._pass.pieces, budget_s, self._pass.clock) or {}

    def end(self) -> None:
        """The pass has given its embeddings."""
        self._pass = None

    def fail(self) -> tuple[bytes, ...]:
        """The pass raised. Returns the clip that is to blame, if it was alone; else each is tried alone."""
        assert self._pass is not None
        clips, self._pass = self._pass.clips, None
        if len(clips) == 1:
            return tuple(clips)
        self._alone.extend(clips.items())
        return ()
