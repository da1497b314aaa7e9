"""Clips that need not cross the engine's pipe again: both ends remember the same ones, without asking.

Each end keeps clips by the one policy, in the order of the messages, which is the same at both ends; so the
sender knows what the receiver holds. Both begin empty with every child.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from cachetools import LRUCache

from server.clip_memory import in_own_pages
from server.types import GenerateRequest

MAX_BYTES = 32 * 2**20
"""Of waveforms that one place keeps: 8 minutes of sound."""
ENTRY_BYTES = 5 * 1024
"""Counted for every clip beside its waveform: its Python objects, and what it leaves of its last page."""


class ClipSender:
    """The parent's end: takes out of requests the waveforms that the child has. One thread uses it."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._sent: LRUCache[bytes, int] = LRUCache(max_bytes, int)

    def shorten(self, request: GenerateRequest) -> GenerateRequest:
        """The request as it is sent: its waveform is None where the key says enough."""
        if request.waveform is None or not request.audio_key:
            return request
        if self._sent.get(request.audio_key) is not None:
            return replace(request, waveform=None)
        cost = waveform_cost(request.waveform)
        if cost <= self._sent.maxsize:
            self._sent[request.audio_key] = cost
        return request


class ClipReceiver:
    """The child's end: puts the waveforms back. One thread uses it."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._kept: LRUCache[bytes, npt.NDArray[np.float32]] = LRUCache(max_bytes, waveform_cost)

    def restore(self, request: GenerateRequest) -> GenerateRequest:
        """The request as it was submitted. Raises KeyError for a clip that never came."""
        if not request.audio_key:
            return request
        if request.waveform is None:
            return replace(request, waveform=self._kept[request.audio_key])
        if waveform_cost(request.waveform) > self._kept.maxsize:
            return request
        kept = self._kept[request.audio_key] = in_own_pages(request.waveform)
        return replace(request, waveform=kept)


def waveform_cost(waveform: npt.NDArray[np.float32]) -> int:
    """Bytes that a kept clip counts."""
    return waveform.nbytes + ENTRY_BYTES
