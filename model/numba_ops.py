"""Tensors in, tensors out: the kernels of `model.numba_kernels`, called like those of `model.triton_ops`."""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.nn.functional as F
from torch import Tensor

from model import numba_kernels as kernels
from model.llama import Rotary

SHARE_BYTES = 2**21
"""Numbers that one thread reads at least: to hand work over costs as much as reading half of that."""


class NumbaOps:
    """What reads much is shared among `torch.get_num_threads()` threads; the rest is quick."""

    gemv: None = None
    """A lone row needs no product of its own: a step of few rows is one function here."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(thread_name_prefix="attention")

    def write_qkv(
        self,
        y: Tensor,
        b: Tensor,
        scale: Tensor,
        rotary: Rotary,
        positions: Tensor,
        slots: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor:
        """y: [N, 3 D + 3 r], x times W and A of q, k and v. b: [3, r, D]. scale: [N, D]. rotary: the whole
        table, [positions, d / 2] each. keys, values: [pages, page size, H, d], written at `slots` [N].
        Gives q [N, H, d].
        """
        rows, (groups, rank, size) = len(y), b.shape
        low = y[:, groups * size :].view(rows, groups, rank).transpose(0, 1)
        update = torch.bmm(low, b)
        query = y.new_empty(rows, *keys.shape[-2:])
        cos, sin = rotary
        arrays = [
            y.numpy(), update.numpy(), scale.numpy(), cos.numpy(), sin.numpy(),
            positions.numpy(), slots.numpy(),
            query.numpy(), keys.flatten(0, 1).numpy(), values.flatten(0, 1).numpy(),
        ]  # fmt: skip
        self._share(lambda first, last: kernels.write_qkv(first, last, *arrays), rows, 2 * y.nbytes)
        return query

    def paged_attention(
        self, query: Tensor, keys: Tensor, values: Tensor, tables: Tensor, contexts: Tensor
    ) -> Tensor:
        """query: [B, H, d], one token of each of B sequences. keys, values: [pages, page size, H, d].
        tables: [B, P] integers. contexts: [B] integers, at least 1. Gives [B, H, d].
        """
        batch, heads, width = query.shape
        lengths = contexts.numpy()
        weights = query.new_empty(batch, heads, int(lengths.max()))
        out = torch.empty_like(query)
        arrays = [
            query.numpy(), keys.numpy(), values.numpy(), tables.numpy(), lengths,
            weights.numpy(), out.numpy(),
        ]  # fmt: skip
        read = 2 * int(lengths.sum()) * heads * width * query.itemsize
        self._share(lambda first, last: kernels.attend(first, last, *arrays), batch * heads, read)
        return out

    def _share(self, run: Callable[[int, int], None], count: int, read: int) -> None:
        """Run it from 0 to count, in parts. read: bytes."""
        shares = max(1, min(torch.get_num_threads(), count, read // SHARE_BYTES))
        each = math.ceil(count / shares)
        others = [
            self._pool.submit(run, first, min(first + each, count)) for first in range(each, count, each)
        ]
        run(0, min(each, count))
        for other in others:
            other.result()

    @staticmethod
    def add_lora(x: Tensor, y: Tensor, b: Tensor, scale: Tensor) -> Tensor:
        """x: [N, D]. y: [N, D + r], an input times W and A. b: [r, D]. scale: [N, D].
        Gives x + y + low B scale.
        """
        out = torch.empty_like(x)
        update = y[:, x.shape[1] :] @ b
        kernels.add_lora(x.numpy(), y.numpy(), update.numpy(), scale.numpy(), out.numpy())
        return out

    @staticmethod
    def norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """RMSNorm of x [N, D]."""
        out = torch.empty_like(x)
        kernels.norm(x.numpy(), weight.numpy(), epsilon, out.numpy())
        return out

    @staticmethod
    def swiglu(gate_up: Tensor) -> Tensor:
        """[N, 2 I], gate and up side by side -> silu(gate) * up [N, I]. What is given is overwritten."""
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate, inplace=True).mul_(up)
