"""Examples of several clips as one flat batch: a clip is read once, its segments do not see each other.

    clip 1: left ids | audio | segment a | segment b      clip 2: left ids | audio | segment a | ...

Positions start again after the audio in every segment, so each reads as if it stood alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from training.tokens import Segment

T = TypeVar("T")
CHOSEN = 5.0
"""Weight of the letter of a choice: one token of ten, and the only one that is hard."""


def move(batch: T, device: torch.device) -> T:
    """The same dataclass (and those in it) with all its tensors on `device`."""
    moved: dict[str, Any] = {}
    for field in dataclasses.fields(batch):  # type: ignore[arg-type]
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            moved[field.name] = value.to(device)
        elif dataclasses.is_dataclass(value):
            moved[field.name] = move(value, device)
    return dataclasses.replace(batch, **moved)  # type: ignore[type-var]


@dataclass(frozen=True, slots=True)
class Ragged:
    """Rows of B clips end to end.

    rows: [sum n, ...]. lengths: n of each clip. slots: [sum n] int64, places in the padded [B * longest].
    """

    rows: Tensor
    lengths: tuple[int, ...]
    slots: Tensor

    @classmethod
    def of(cls, clips: Sequence[Tensor]) -> Ragged:
        """Of each clip's rows [n, ...]."""
        lengths = tuple(map(len, clips))
        rows = torch.cat(list(clips))
        return cls(rows, lengths, slots_of(lengths).to(rows.device))

    @classmethod
    def unpadded(cls, padded: Tensor, lengths: tuple[int, ...]) -> Ragged:
        """Of [B, L, ...], L at least the longest; what lies behind a clip's length is left out."""
        slots = slots_of(lengths).to(padded.device)
        return cls(padded[:, : max(lengths)].flatten(0, 1).index_select(0, slots), lengths, slots)

    def padded(self) -> Tensor:
        """[B, longest, ...], zeros behind each clip."""
        shape = (len(self.lengths), max(self.lengths), *self.rows.shape[1:])
        zeros = self.rows.new_zeros(shape[0] * shape[1], *shape[2:])
        return zeros.index_copy(0, self.slots, self.rows).view(shape)

    def mean(self) -> Tensor:
        """[B, ...] over each clip's rows."""
        counts = torch.tensor(self.lengths, device=self.rows.device)
        return self.padded().sum(1) / counts.view(-1, *[1] * (self.rows.ndim - 1))

    def split(self) -> list[Tensor]:
        """Each clip's rows [n, ...]."""
        return list(torch.split(self.rows, list(self.lengths)))


def slots_of(lengths: Sequence[int]) -> Tensor:
    """[sum n] int64: the places of B clips' rows in the padded [B * longest]."""
    inside = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return inside.flatten().nonzero()[:, 0]


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
    slots: [N] places in the padded [B * L]. blocks: [B, L] int64, the segment of each token in its item from
    1 on, 0 for what all of them share, -1 for padding.
    rows, targets: [R] int64, rows whose next token is an answer's, and that token. weights: [R] float32,
    summing to 1. segment: [R] number of the segment in the batch, of `num_segments`.
    """

    ids: Tensor
    positions: Tensor
    item: Tensor
    audio_rows: Tensor
    slots: Tensor
    blocks: Tensor
    rows: Tensor
    targets: Tensor
    weights: Tensor
    segment: Tensor
    num_segments: int


def pack(items: Sequence[Item]) -> Packed:
    """Lay out `items`, on the CPU."""
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
    weight = torch.tensor(weights)
    padded = [[*block, *[-1] * (longest - len(block))] for block in blocks]

    return Packed(
        ids=torch.tensor(ids),
        positions=torch.tensor(positions),
        item=torch.tensor([i for i, length in enumerate(lengths) for _ in range(length)]),
        audio_rows=torch.tensor(audio_rows, dtype=torch.long),
        slots=slots_of(lengths),
        blocks=torch.tensor(padded),
        rows=torch.tensor(rows),
        targets=torch.tensor(targets),
        weights=weight / weight.sum(),
        segment=torch.tensor(numbers),
        num_segments=segments,
    )


def _answer_rows(segment: Segment, start: int, number: int) -> list[tuple[int, int, float, int]]:
    """Row, target, weight, segment. A token of a long answer weighs less, so that short ones count too."""
    first = start + len(segment.prompt) - 1
    length = len(segment.answer)
    weights = [length**-0.5 * (CHOSEN if i >= length - segment.choice else 1.0) for i in range(length)]
    return [(first + i, segment.answer[i], weights[i], number) for i in range(length)]


def visible(blocks: Tensor) -> Tensor:
    """[B, L] as in Packed -> [B, 1, L, L] bool, who sees whom: causal, into the prefix (block 0) and the own
    block. Padding sees itself.
    """
    query, key = blocks[:, :, None], blocks[:, None, :]
    longest = blocks.shape[1]
    causal = torch.ones(longest, longest, dtype=torch.bool, device=blocks.device).tril()
    return (causal & ((key == 0) | (key == query)))[:, None]


@dataclass(frozen=True, slots=True)
class MaskedAttention:
    """model.llama's Attend over a packed batch: dense, masked, differentiable.

    slots: [N] places in the padded [B * L]. mask: [B, 1, L, L] bool.
    """

    slots: Tensor
    mask: Tensor

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[N, H, d] each -> [N, H, d]."""
        batch, _, longest, _ = self.mask.shape

        def padded(x: Tensor) -> Tensor:
            full = x.new_zeros(batch * longest, *x.shape[1:]).index_copy(0, self.slots, x)
            return full.view(batch, longest, *x.shape[1:]).transpose(1, 2)

        out = F.scaled_dot_product_attention(
            padded(query), padded(key), padded(value), attn_mask=self.mask
        )
        return out.transpose(1, 2).flatten(0, 1).index_select(0, self.slots)
