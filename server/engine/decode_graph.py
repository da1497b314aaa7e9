"""Decode steps as CUDA graphs: one replay in place of hundreds of launches, which cost more than the work.

A graph has fixed shapes and addresses, so steps are captured for a few batch sizes and rows that nobody needs
are padding: they write to a page of their own and are not looked at. Block tables have room for the longest
context; how much of them counts is told by the positions, which are data on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.fused_llama import FusedLlama
from model.kv_cache import KVCache

BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Where steps are captured; a step of more rows than its engine's largest runs without a graph."""


@dataclass(frozen=True, slots=True)
class DecodeRow:
    """One sequence's newest token, its position, its block table, its scale [D]."""

    token: int
    position: int
    pages: list[int]
    scale: Tensor


@dataclass(slots=True)
class _Filled:
    """What a row of the buffers holds now. A block table only grows, or is another list."""

    pages: list[int]
    num_pages: int
    scale: Tensor


class DecodeGraphs:
    """Captured steps over one cache, whose page `scratch` belongs to no sequence.

    On a device without graphs the same steps are computed anew each time, for tests.
    """

    def __init__(
        self, fused: FusedLlama, cache: KVCache, scratch: int, max_rows: int, suppressed: Sequence[int]
    ) -> None:
        config, like = fused.config, cache.keys
        self._fused, self._cache, self._scratch = fused, cache, scratch
        self._sizes = [*(size for size in BATCH_SIZES if size < max_rows), max_rows]
        width = -(-config.max_position_embeddings // cache.page_size)
        cuda = like.device.type == "cuda"
        self._host = torch.zeros(max_rows * (2 + width), dtype=torch.int32, pin_memory=cuda)
        self._device = torch.zeros_like(self._host, device=like.device)
        self._tokens, self._positions, self._tables = (
            part.numpy() for part in _parts(self._host, max_rows, width)
        )
        self._inputs = _parts(self._device, max_rows, width)
        self._scales = torch.zeros(max_rows, config.hidden_size, dtype=like.dtype, device=like.device)
        self._suppressed = torch.tensor(suppressed, dtype=torch.long, device=like.device)
        self._filled: list[_Filled | None] = [None] * max_rows
        self._graphs: dict[int, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._tables[:, 0] = scratch
        self._device.copy_(self._host)

    @property
    def max_rows(self) -> int:
        """Rows of the largest step."""
        return self._sizes[-1]

    @torch.inference_mode()
    def capture(self) -> None:
        """Capture all batch sizes, the largest first, in one pool of memory. Only on a CUDA device."""
        pool = torch.cuda.graph_pool_handle()
        aside = torch.cuda.Stream(self._device.device)  # type: ignore[no-untyped-call]
        for size in reversed(self._sizes):
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                self._compute(size)  # compiles kernels and lets the libraries make their workspaces
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                outputs = self._compute(size)
            self._graphs[size] = (graph, *outputs)

    def step(self, rows: Sequence[DecodeRow]) -> tuple[list[int], Tensor]:
        """One token for each row, greedily; -1 where logits are not finite. At most `max_rows` rows.

        The logits [R, V], with suppressed ids at -inf, are good until the next step.
        """
        size = next(size for size in self._sizes if size >= len(rows))
        self._fill(rows, size)
        self._device.copy_(self._host, non_blocking=True)
        chosen, logits = self.replay(size)
        # Waits for the step, so the host's buffer is free for the next one.
        tokens: list[int] = chosen[: len(rows)].tolist()
        return tokens, logits[: len(rows)]

    def replay(self, size: int) -> tuple[Tensor, Tensor]:
        """A step of a captured size on what the buffers hold, nothing copied: chosen ids and logits."""
        if size not in self._graphs:
            return self._compute(size)
        graph, chosen, logits = self._graphs[size]
        graph.replay()
        return chosen, logits

    def _compute(self, size: int) -> tuple[Tensor, Tensor]:
        """Chosen ids [size] and logits [size, V] of the buffers' first rows."""
        tokens, positions, tables = (part[:size] for part in self._inputs)
        hidden = self._fused.decode(tokens, positions, tables, self._scales[:size], self._cache)
        logits = self._fused.logits(hidden)
        finite = logits.isfinite().all(dim=-1)
        logits.index_fill_(1, self._suppressed, float("-inf"))
        return torch.where(finite, logits.argmax(dim=-1), -1), logits

    def _fill(self, rows: Sequence[DecodeRow], size: int) -> None:
        """Write what changed since the last step; block tables and scales seldom do."""
        for index, row in enumerate(rows):
            self._tokens[index], self._positions[index] = row.token, row.position
            held = self._filled[index]
            if held is None or held.pages is not row.pages or held.num_pages != len(row.pages):
                self._tables[index, : len(row.pages)] = row.pages
            if held is None or held.scale is not row.scale:
                self._scales[index] = row.scale
            self._filled[index] = _Filled(row.pages, len(row.pages), row.scale)
        for index in range(len(rows), size):
            if self._filled[index] is not None:
                self._tokens[index] = self._positions[index] = 0
                self._tables[index, 0] = self._scratch
                self._filled[index] = None


def _parts(flat: Tensor, rows: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens [rows], positions [rows] and block tables [rows, width] in one buffer, copied at once."""
    return flat[:rows], flat[rows : 2 * rows], flat[2 * rows :].view(rows, width)
