"""A decode step of a few sequences on a CPU: tensors in, tensors out, around `numba_kernels.step`."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model import numba_kernels as kernels
from model.kv_cache import KVCache
from model.llama import FlatBatch, Rotary

MAX_HELPERS = 63
"""Threads beside the engine's own."""


class DecodeStep:
    """Holds the addresses of a decoder's weights, in the order that `numba_kernels.step` wants.

    layers: of each layer those eight tensors. They may not move any more.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, ...]], epsilon: float) -> None:
        self._layers = tuple(layers)
        assert all(tensor.is_contiguous() for layer in layers for tensor in layer), "weights with gaps"
        self._addresses = np.array([[tensor.data_ptr() for tensor in layer] for layer in layers])
        self._rank = layers[0][3].shape[0]
        self._inner = layers[0][5].shape[1]
        self._epsilon = epsilon
        self._pool = ThreadPoolExecutor(MAX_HELPERS, thread_name_prefix="decode")

    def run(self, batch: FlatBatch, rotary: Rotary, cache: KVCache) -> Tensor:
        """A batch of decoding rows alone, with a scale -> hidden states [N, D] before the final norm."""
        assert batch.decodes is not None
        assert batch.scale is not None
        x = batch.embeddings.clone()
        num_heads = cache.keys.shape[3]
        longest = int(batch.decodes.contexts.max())
        num_threads = torch.get_num_threads()
        arguments = (
            x.numpy(),
            self._addresses,
            self._rank,
            self._epsilon,
            batch.scale.contiguous().numpy(),
            *(table.numpy() for table in rotary),
            batch.positions.numpy(),
            cache.keys.numpy(),
            cache.values.numpy(),
            batch.decodes.pages.numpy(),
            heads_at_a_time(num_heads, num_threads),
            self._spaces(x, num_heads, longest),
            np.zeros((len(self._layers) * kernels.PHASES, kernels.COUNTERS), np.int64),
        )
        helpers = self._helpers(num_threads - 1, arguments)
        try:
            kernels.step(*arguments)
        except BaseException:
            # What was to be computed here will be computed otherwise: nobody may write to it any more.
            wait([helper for helper in helpers if not helper.cancel()])
            raise
        for helper in helpers:
            helper.cancel()  # who has not begun by now need not
        return x

    def _helpers(self, count: int, arguments: tuple[object, ...]) -> list[Future[None]]:
        """Threads that take part, as many as there can be: the step needs none of them."""
        helpers: list[Future[None]] = []
        try:
            for _ in range(min(count, MAX_HELPERS)):
                helpers.append(self._pool.submit(kernels.step, *arguments))
        except RuntimeError:  # the system gives no more threads
            pass
        return helpers

    def _spaces(self, x: Tensor, num_heads: int, longest: int) -> tuple[npt.NDArray[np.floating], ...]:
        rows, size = x.shape
        heads = rows, num_heads, size // num_heads
        shapes: tuple[tuple[int, ...], ...] = (
            (rows, size),
            (rows, 3 * (size + self._rank)),
            (3, rows, size),
            heads,
            (rows, num_heads, longest),
            heads,
            (rows, size + self._rank),
            (rows, 2 * self._inner),
            (rows, self._inner),
        )
        # A tuple made from a generator would stay in CPython's list of free ones, up to 2,000 of them.
        return tuple([x.new_empty(shape).numpy() for shape in shapes])


def heads_at_a_time(num_heads: int, num_threads: int) -> int:
    """A divisor of the number of heads that leaves a piece for every thread, if there are as many heads."""
    most = max(1, num_heads // num_threads)
    return next(heads for heads in range(most, 0, -1) if num_heads % heads == 0)
