"""Greedy choice and seeded draws: distributions by chi-square, and nothing that hangs on the batch."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model import sampling
from model.sampling import SamplingRow, sample, uniform

GREEDY = SamplingRow(temperature=0.0, top_k=0, top_p=1.0, seed=0, position=0, banned=())
DRAW = dataclasses.replace(GREEDY, temperature=1.0)
LOGITS = torch.tensor([0.3, 2.0, -1.0, 1.5, 1.0, -4.0, 0.0, 0.5])
NEVER = float("-inf")


def draws(logits: Tensor, row: SamplingRow, count: int) -> list[int]:
    """Ids drawn at positions 0, 1, ... of one answer."""
    rows = [dataclasses.replace(row, position=position) for position in range(count)]
    return sample(logits.expand(count, -1).clone(), rows)


def plain_distribution(logits: Tensor, row: SamplingRow) -> np.ndarray:
    """Probabilities after the ban, temperature, top-k, then top-p, one token at a time."""
    values = {i: value for i, value in enumerate(logits.double().tolist()) if i not in row.banned}
    order = sorted(values, key=lambda i: (-values[i], i))
    weights = {i: math.exp((values[i] - values[order[0]]) / row.temperature) for i in order}
    order = order[: row.top_k or None]
    total = sum(weights[i] for i in order)
    kept, mass = [], 0.0
    for i in order:
        if kept and mass >= row.top_p:
            break
        kept.append(i)
        mass += weights[i] / total
    probabilities = np.zeros(len(logits))
    for i in kept:
        probabilities[i] = weights[i] / sum(weights[j] for j in kept)
    return probabilities


def chi_square_limit(freedom: int) -> float:
    """Value that a chi-square variable passes with probability below 1e-4 (Wilson and Hilferty)."""
    return freedom * (1 - 2 / (9 * freedom) + 3.72 * math.sqrt(2 / (9 * freedom))) ** 3


@pytest.mark.parametrize(
    "row",
    [
        DRAW,
        dataclasses.replace(DRAW, temperature=0.5),
        dataclasses.replace(DRAW, temperature=2.0),
        dataclasses.replace(DRAW, top_k=3),
        dataclasses.replace(DRAW, top_k=2**31 - 1),
        dataclasses.replace(DRAW, top_p=0.7),
        dataclasses.replace(DRAW, top_p=0.75, top_k=4, temperature=1.5),
        dataclasses.replace(DRAW, banned=(1, 3)),
        dataclasses.replace(DRAW, banned=(1,), top_k=2, top_p=0.9),
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 12345, 2**63 - 1])
def test_draws_follow_the_distribution(row: SamplingRow, seed: int) -> None:
    count = 6_000
    found = np.bincount(draws(LOGITS, dataclasses.replace(row, seed=seed), count), minlength=len(LOGITS))
    expected = plain_distribution(LOGITS, row) * count
    possible = expected > 0
    assert not found[~possible].any()
    statistic = ((found - expected)[possible] ** 2 / expected[possible]).sum()
    assert statistic < chi_square_limit(int(possible.sum()) - 1)


def test_draws_at_different_positions_and_seeds_are_independent() -> None:
    """Pairs of neighbours, in position and in seed, fill the square evenly."""
    neighbours = {
        "position": [(uniform(9, i), uniform(9, i + 1)) for i in range(0, 8000, 2)],
        "seed": [(uniform(i, 3), uniform(i + 1, 3)) for i in range(0, 8000, 2)],
    }
    for pairs in neighbours.values():
        cells = np.histogram2d(*zip(*pairs, strict=True), bins=4, range=[[0, 1], [0, 1]])[0]
        expected = len(pairs) / 16
        assert ((cells - expected) ** 2 / expected).sum() < chi_square_limit(15)


def test_greedy_takes_the_best_and_the_lowest_id_of_a_tie() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [5.0, 5.0, 5.0, 5.0], [NEVER, NEVER, -9.0, NEVER]])
    assert sample(logits, [GREEDY] * 3) == [1, 0, 2]


def test_banned_ids_are_never_taken() -> None:
    greedy = dataclasses.replace(GREEDY, banned=(1, 3))
    drawn = dataclasses.replace(DRAW, banned=(1, 3), top_k=1)
    assert sample(LOGITS.expand(3, -1).clone(), [GREEDY, greedy, drawn]) == [1, 4, 4]
    all_but_one = dataclasses.replace(DRAW, banned=tuple(i for i in range(8) if i != 5), temperature=2.0)
    assert set(draws(LOGITS, all_but_one, 200)) == {5}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_every_dtype_of_logits(dtype: torch.dtype) -> None:
    logits = LOGITS.to(dtype)
    assert sample(logits[None].clone(), [GREEDY]) == [1]
    found = draws(logits, dataclasses.replace(DRAW, top_k=2), 400)
    assert set(found) == {1, 3}


@pytest.mark.parametrize(
    "row",
    [
        dataclasses.replace(DRAW, temperature=1e-6),
        dataclasses.replace(DRAW, temperature=5e-324),
        dataclasses.replace(DRAW, top_k=1),
        dataclasses.replace(DRAW, top_p=1e-9),
        dataclasses.replace(DRAW, top_p=1e-300, temperature=2.0),
    ],
    ids=str,
)
def test_extremes_are_greedy(row: SamplingRow) -> None:
    logits = 1e4 * LOGITS if row.temperature < 1 else LOGITS
    assert set(draws(logits, row, 300)) == {1}


def test_ties_that_remain_are_drawn_and_a_cut_through_a_tie_keeps_the_lowest_ids() -> None:
    flat = torch.zeros(6)
    assert set(draws(flat, dataclasses.replace(DRAW, temperature=1e-6), 300)) == set(range(6))
    assert set(draws(flat, dataclasses.replace(DRAW, top_k=2), 300)) == {0, 1}
    assert set(draws(flat, dataclasses.replace(DRAW, top_p=0.5), 300)) == {0, 1, 2}
    # As many as a real vocabulary: short rows stay in order by any sort.
    assert set(draws(torch.zeros(5000), dataclasses.replace(DRAW, top_k=2), 50)) == {0, 1}


def test_infinitely_unlikely_tokens_are_never_drawn() -> None:
    logits = torch.tensor([NEVER, 0.0, NEVER, 0.0, NEVER])
    assert set(draws(logits, dataclasses.replace(DRAW, temperature=2.0), 500)) == {1, 3}


@pytest.mark.parametrize("draw", [0.0, 5e-324, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_the_ends_of_the_unit_interval_give_tokens_that_are_allowed(
    monkeypatch: pytest.MonkeyPatch, draw: float, top_p: float
) -> None:
    monkeypatch.setattr(sampling, "uniform", lambda seed, position: draw)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        logits = 3 * torch.randn(30, generator=generator)
        row = dataclasses.replace(DRAW, top_p=top_p, banned=(29, 3))
        (token,) = draws(logits, row, 1)
        assert plain_distribution(logits, row)[token] > 0


rows = st.builds(
    SamplingRow,
    temperature=st.sampled_from([0.0, 1e-6, 0.7, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5, 1000]),
    top_p=st.sampled_from([1.0, 0.9, 0.3, 1e-9]),
    seed=st.integers(0, 2**63 - 1),
    position=st.integers(0, 5000),
    banned=st.sampled_from([(), (0,), (0, 2)]),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(rows, min_size=1, max_size=12), st.integers(0, 1000))
def test_a_row_does_not_depend_on_its_batch(batch: list[SamplingRow], seed: int) -> None:
    logits = 4 * torch.randn(len(batch), 320, generator=torch.Generator().manual_seed(seed))
    together = sample(logits.clone(), batch)
    alone = [sample(logits[i : i + 1].clone(), [row])[0] for i, row in enumerate(batch)]
    backwards = sample(logits.flip(0).clone(), batch[::-1])[::-1]
    assert together == alone == backwards


@given(st.integers(-(2**63), 2**64 - 1), st.integers(0, 10**6))
def test_a_number_belongs_to_its_seed_and_position(seed: int, position: int) -> None:
    number = uniform(seed, position)
    assert 0 <= number < 1
    assert number == uniform(seed, position)
    assert number != uniform(seed, position + 1)
    assert number != uniform(seed + 1, position)


def test_draws_stay_the_same_from_release_to_release() -> None:
    expected = [7, 1, 0, 1, 2, 6, 7, 3, 4, 4, 4, 1]
    assert draws(LOGITS, dataclasses.replace(DRAW, seed=42), 12) == expected
