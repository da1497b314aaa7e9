"""Long computations cut in pieces, so that a server can do something else in between.

A computation is a generator that yields after each piece and returns its result. Where it is cut depends on
shapes and the kind of device alone, never on what else runs, so a result does not depend on it either.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.prepacked import gelu_of, sum_with

T = TypeVar("T")
Pieces = Generator[None, None, T]

CPU_FLOPS = 3.2e9
"""Of one piece, about: some 20 to 50 ms on two cores. A third of it costs a tenth of the products' rate. Half
of Whisper base's feed-forward network over one window is just one piece.
"""
FRAME_MULTIPLE = 32
"""Frames are computed in multiples of this where each clip has its own number: a CPU takes up to 6 ms to plan
a convolution of a number that it has not met, and keeps few plans."""
GPU_FLOPS = 2e12
"""Some 4 ms of a large GPU. There a layer of a few clips is one piece: launches would cost more."""


def finish(pieces: Pieces[T]) -> T:
    """Run to the end at once."""
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            result: T = end.value
            return result


def rows_of_a_piece(flops_per_row: float, device: torch.device) -> int:
    """Rows that one piece computes, at least one."""
    flops = CPU_FLOPS if device.type == "cpu" else GPU_FLOPS
    return max(1, int(flops / flops_per_row))


def round_up(count: int, multiple: int) -> int:
    """The next multiple, or the count itself."""
    return -(-count // multiple) * multiple


def pauses(x: Tensor) -> Pieces[None]:
    """Where a layer ends on a GPU, which does not stop within a layer unless it is a long one."""
    if x.is_cuda:
        yield


def join(parts: Sequence[Tensor], dim: int = 0) -> Tensor:
    """The parts one after the other; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), dim)


def joined(
    parts: Iterable[Tensor], length: int, dim: int = 0, *, pausing: bool = True
) -> Pieces[Tensor]:
    """Parts, computed as they are asked for in a piece each -> one after the other along `dim`, `length` in
    all; what they leave of it is zeros. A single one is not copied. pausing: whether there are pieces at all.

    Each is put where it belongs at once: to touch so much memory at the end would be a long piece of its own.
    """
    out, filled = None, 0
    for part in parts:
        size = part.shape[dim]
        if size == length:
            out = part
        else:
            if out is None:
                out = part.new_empty([*part.shape[:dim], length, *part.shape[dim + 1 :]])
            out.narrow(dim, filled, size).copy_(part)
        filled += size
        if pausing:
            yield
    assert out is not None
    if filled < length:
        out.narrow(dim, filled, length - filled).zero_()
    return out


def linear(layer: nn.Linear, x: Tensor) -> Pieces[Tensor]:
    """[..., a] -> [..., b], in pieces of about equal size."""
    return (yield from _by_rows(layer, layer, x))


def linear_gelu(layer: nn.Linear, x: Tensor) -> Pieces[Tensor]:
    """The same, then GELU."""
    return (yield from _by_rows(layer, partial(gelu_of, layer), x))


def add_linear(added: Tensor, layer: nn.Linear, x: Tensor) -> Pieces[Tensor]:
    """added [..., b] + linear(layer, x)."""
    return (yield from _by_rows(layer, lambda one, other: sum_with(other, layer, one), x, added))


def _by_rows(layer: nn.Linear, compute: Callable[..., Tensor], *tensors: Tensor) -> Pieces[Tensor]:
    """compute: gets the same rows of each tensor, and gives as many as `layer` does of the first's."""
    rows = [tensor.flatten(0, -2) for tensor in tensors]
    per_piece = rows_of_a_piece(2.0 * layer.in_features * layer.out_features, rows[0].device)
    num_pieces = -(-len(rows[0]) // per_piece)
    chunks = zip(*(torch.chunk(one, num_pieces) for one in rows), strict=True)
    parts = (compute(*some) for some in chunks)
    pausing = num_pieces > 1 or not rows[0].is_cuda
    out = yield from joined(parts, len(rows[0]), pausing=pausing)
    return out.view(*tensors[0].shape[:-1], -1)


def convolve(layer: nn.Conv1d, x: Tensor, multiple: int = 1) -> Pieces[Tensor]:
    """[B, a, T] -> [B, b, frames]: the convolution with its own zero padding, some frames at a time.

    multiple: frames are computed in multiples of this, on zeros at the end, and those too many are dropped.
    """
    kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
    frames = (x.shape[-1] + 2 * padding - kernel) // stride + 1
    step = rows_of_a_piece(2.0 * layer.weight.numel() * len(x), x.device)
    if frames <= step and frames % multiple == 0:
        whole: Tensor = layer(x)
        yield
        return whole
    step = round_up(step, multiple)
    computed = round_up(frames, multiple)
    needed = (computed - 1) * stride + kernel - padding - x.shape[-1]
    padded = F.pad(x, (padding, max(padding, needed)))

    def part(start: int) -> Tensor:
        last = min(start + step, computed) - 1
        seen = padded[..., start * stride : last * stride + kernel]
        return F.conv1d(seen, layer.weight, layer.bias, stride, groups=layer.groups)

    parts = (part(start) for start in range(0, computed, step))
    return (yield from joined(parts, computed, 2))[..., :frames]
