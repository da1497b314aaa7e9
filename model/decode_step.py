"""A decode step of a few sequences on a CPU: tensors in, tensors out, around `model.numba_step`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model import numba_step
from model.kv_cache import KVCache
from model.llama import FlatBatch, Rotary
from model.numba_team import COUNTERS


class DecodeStep:
    """Holds the addresses of a decoder's weights, in the order that `numba_step.step` wants.

    layers: of each layer those eight tensors. They may not move any more.
    """

    def __init__(self, layers: Sequence[tuple[Tensor, ...]], epsilon: float) -> None:
        self._layers = tuple(layers)
        assert all(tensor.is_contiguous() for layer in layers for tensor in layer), "weights with gaps"
        self._addresses = np.array([[tensor.data_ptr() for tensor in layer] for layer in layers])
        self._rank = layers[0][3].shape[0]
        self._inner = layers[0][5].shape[1]
        self._epsilon = epsilon
        self._pool = ThreadPoolExecutor(thread_name_prefix="decode")

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
            num_heads // math.gcd(num_heads, num_threads),
            self._spaces(x, num_heads, longest),
            np.zeros((len(self._layers) * numba_step.PHASES, COUNTERS), np.int64),
        )
        helpers = [self._pool.submit(numba_step.step, *arguments) for _ in range(num_threads - 1)]
        numba_step.step(*arguments)
        for helper in helpers:
            helper.cancel()  # who has not begun by now need not
        return x

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
        return tuple(x.new_empty(shape).numpy() for shape in shapes)
