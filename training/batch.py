"""Examples of several clips as one flat batch: a clip is read once, its segments do not see each other.

    clip 1: left ids | audio | segment a | segment b      clip 2: left ids | audio | segment a | ...

Positions start again after the audio in every segment, so each reads as if it stood alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.tokens import Segment


@dataclass(frozen=True, slots=True)
class Item:
    """One clip of a batch. left: ids before the audio. num_audio: audio embeddings, perhaps none."""

    left: tuple[int, ...]
    num_audio: int
    segments: tuple[Segment, ...]


@dataclass(frozen=True, slots=True)
class Packed:
    """Flat tensors over N tokens of B items; L is the longest item.

    ids, positions, item: [N] int64. audio_rows: [sum num_audio] rows that take audio embeddings.
    slots: [N] places in the padded [B * L]. mask: [B, 1, L, L] bool, who sees whom.
    rows, targets: [R] int64, rows whose next token is an answer's, and that token. weights: [R] float32,
    summing to 1. segment: [R] number of the segment in the batch.
    """

    ids: Tensor
    positions: Tensor
    item: Tensor
    audio_rows: Tensor
    slots: Tensor
    mask: Tensor
    rows: Tensor
    targets: Tensor
    weights: Tensor
    segment: Tensor


def pack(items: Sequence[Item], device: torch.device) -> Packed:
    """Lay out `items`."""
    ids: list[int] = []
    positions: list[int] = []
    audio_rows: list[int] = []
    answers: list[tuple[int, int, float, int]] = []
    lengths: list[int] = []
    blocks: list[list[int]] = []
    segments = 0
    for item in items:
        start = len(ids)
        audio_rows += range(start + len(item.left), start + len(item.left) + item.num_audio)
        ids += [*item.left, *[0] * item.num_audio]
        prefix = len(ids) - start
        positions += range(prefix)
        block = [0] * prefix
        for number, segment in enumerate(item.segments, 1):
            answers += _answer_rows(segment, len(ids), segments)
            segments += 1
            tokens = (*segment.prompt, *segment.answer[:-1])
            ids += tokens
            positions += range(prefix, prefix + len(tokens))
            block += [number] * len(tokens)
        lengths.append(len(block))
        blocks.append(block)
    rows, targets, weights, numbers = zip(*answers, strict=True)
    longest = max(lengths)
    weight = torch.tensor(weights, device=device)

    def ints(values: Sequence[int]) -> Tensor:
        return torch.tensor(values, device=device)

    return Packed(
        ids=ints(ids),
        positions=ints(positions),
        item=ints([i for i, length in enumerate(lengths) for _ in range(length)]),
        audio_rows=torch.tensor(audio_rows, dtype=torch.long, device=device),
        slots=ints([i * longest + j for i, length in enumerate(lengths) for j in range(length)]),
        mask=_mask(blocks, longest).to(device),
        rows=ints(rows),
        targets=ints(targets),
        weights=weight / weight.sum(),
        segment=ints(numbers),
    )


def _answer_rows(segment: Segment, start: int, number: int) -> list[tuple[int, int, float, int]]:
    """Row, target, weight, segment. A token of a long answer weighs less, so that short ones count too."""
    first = start + len(segment.prompt) - 1
    weight = len(segment.answer) ** -0.5
    return [(first + i, token, weight, number) for i, token in enumerate(segment.answer)]


def _mask(blocks: Sequence[Sequence[int]], longest: int) -> Tensor:
    """[B, 1, L, L]: causal, into the prefix (block 0) and the own block. Padding sees itself."""
    padded = torch.tensor([[*block, *[-1] * (longest - len(block))] for block in blocks])
    query, key = padded[:, :, None], padded[:, None, :]
    causal = torch.ones(longest, longest, dtype=torch.bool).tril()
    return (causal & ((key == 0) | (key == query)))[:, None]


@dataclass(frozen=True, slots=True)
class MaskedAttention:
    """model.llama's Attend over a packed batch: dense, masked, differentiable."""

    packed: Packed

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[N, H, d] each -> [N, H, d]."""
        batch, _, longest, _ = self.packed.mask.shape

        def padded(x: Tensor) -> Tensor:
            full = x.new_zeros(batch * longest, *x.shape[1:]).index_copy(0, self.packed.slots, x)
            return full.view(batch, longest, *x.shape[1:]).transpose(1, 2)

        out = F.scaled_dot_product_attention(
            padded(query), padded(key), padded(value), attn_mask=self.packed.mask
        )
        return out.transpose(1, 2).flatten(0, 1).index_select(0, self.packed.slots)
