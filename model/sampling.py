"""Logits -> the next token, for a batch of rows that each have their own parameters.

A draw depends on the row's logits, its seed and its position alone, so batching, preemption and a
restart never change a sampled answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.config import GenerationConfig


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """Parameters of one row. position: index of the token to draw among the answer's, from 0.

    temperature 0 is greedy. top_k 0 and top_p 1 are off. banned: ids never taken here.
    """

    temperature: float
    top_k: int
    top_p: float
    seed: int
    position: int
    banned: tuple[int, ...]


@torch.inference_mode()
def sample(logits: Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    """logits: [R, V]; returns R ids. Ties go to the lowest id. The logits are changed in place."""
    banned = [(i, token) for i, row in enumerate(rows) for token in row.banned]
    if banned:
        index = torch.tensor(banned, device=logits.device).t()
        logits[index[0], index[1]] = float("-inf")
    chosen: list[int] = logits.argmax(dim=-1).tolist()
    drawn = [i for i, row in enumerate(rows) if row.temperature > 0]
    if drawn:
        ids = _draw(logits[drawn], [rows[i] for i in drawn])
        for i, token in zip(drawn, ids, strict=True):
            chosen[i] = token
    return chosen


def is_looping(tokens: Sequence[int], rule: GenerationConfig) -> bool:
    """Whether an answer's tokens end in `rule.max_repeats` copies of one thing, one after another."""
    times = rule.max_repeats
    if times is None:
        return False
    longest = min(rule.longest_repeat, len(tokens) // times)
    return any(_ends_in_copies(tokens, size, times) for size in range(1, longest + 1))


def _ends_in_copies(tokens: Sequence[int], size: int, times: int) -> bool:
    if tokens[-1] != tokens[-1 - size]:  # nearly always, and the rest need not be looked at
        return False
    tail = tokens[-size * times :]
    return tail[size:] == tail[:-size]


def uniform(seed: int, position: int) -> float:
    """The number in [0, 1) that belongs to (seed, position), from a counter-based generator."""
    generator = np.random.Philox(key=seed % 2**64, counter=position)
    return float(np.random.Generator(generator).random())


def _draw(logits: Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    """Inverse-CDF sampling over tokens sorted by logit, after temperature, top-k, then top-p.

    [R, V] -> R ids. In float64, so that a row's cut does not hang on how rounding fell in its batch.
    """
    device = logits.device
    temperature = torch.tensor([row.temperature for row in rows], dtype=torch.float64, device=device)
    ordered, order = logits.double().sort(dim=-1, descending=True, stable=True)
    # Shifted by the largest before the division, so that a tiny temperature cannot overflow.
    probabilities = ((ordered - ordered[:, :1]) / temperature[:, None]).softmax(dim=-1)
    vocab = logits.shape[-1]
    top_k = torch.tensor([row.top_k or vocab for row in rows], device=device)
    probabilities = probabilities.masked_fill(torch.arange(vocab, device=device) >= top_k[:, None], 0.0)
    probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    top_p = torch.tensor([row.top_p for row in rows], dtype=torch.float64, device=device)
    before = probabilities.cumsum(dim=-1) - probabilities
    probabilities = probabilities.masked_fill((before >= top_p[:, None]) & (before > 0), 0.0)
    cdf = probabilities.cumsum(dim=-1)
    draws = [uniform(row.seed, row.position) for row in rows]
    target = torch.tensor(draws, dtype=torch.float64, device=device)[:, None] * cdf[:, -1:]
    rank = torch.searchsorted(cdf, target, right=True).clamp_(max=vocab - 1)
    ids: list[int] = order.gather(1, rank)[:, 0].tolist()
    return ids
