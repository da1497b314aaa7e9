"""The clips decoded last, by the bytes they came in: one clip is often asked about again and again."""

from __future__ import annotations

import asyncio

from blake3 import blake3
from cachetools import LRUCache

from server.engine_clips import MAX_BYTES, waveform_cost
from server.service_types import Decoder
from server.types import DecodedAudio

QUICK_BYTES = 2**19
"""Uploads up to this size are hashed at once, in a tenth of a millisecond; a thread costs as much."""


class CachedDecoder:
    """A decoder that remembers. Belongs to the event loop.

    Nothing is looked up by anything but the upload's BLAKE3, so a known clip is the very same file. Refused
    clips are not remembered. Waveforms are shared by all requests about a clip; nobody writes to them.

    max_bytes: of the waveforms kept, least recently used first out; a longer one is not kept.
    """

    def __init__(self, decoder: Decoder, max_bytes: int = MAX_BYTES) -> None:
        self._decoder = decoder
        self._kept: LRUCache[bytes, DecodedAudio] = LRUCache(max_bytes, _cost)

    async def start(self) -> None:
        """Start the decoder."""
        await self._decoder.start()

    async def decode(self, data: bytes) -> DecodedAudio:
        """As the decoder does, or did for the same bytes."""
        quick = len(data) <= QUICK_BYTES
        digest = _digest(data) if quick else await asyncio.to_thread(_digest, data)
        known = self._kept.get(digest)
        if known is not None:
            return known
        audio = await self._decoder.decode(data)
        if _cost(audio) <= self._kept.maxsize:
            self._kept[digest] = audio
        return audio

    async def stop(self) -> None:
        """Stop the decoder and forget all clips. Idempotent."""
        await self._decoder.stop()
        self._kept.clear()


def _digest(data: bytes) -> bytes:
    return blake3(data).digest()


def _cost(audio: DecodedAudio) -> int:
    return waveform_cost(audio.waveform)
