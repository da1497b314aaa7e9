"""Parts that are computed one by one and put where they belong."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.pieces import joined


def run(parts: list[Tensor], length: int, dim: int = 0, **options: bool) -> tuple[Tensor, int]:
    """The result, and how often it paused."""
    pieces = joined(iter(parts), length, dim, **options)
    pauses = 0
    while True:
        try:
            next(pieces)
        except StopIteration as end:
            return end.value, pauses
        pauses += 1


@pytest.mark.parametrize(("dim", "sizes"), [(0, (2, 3, 1)), (2, (4, 4)), (1, (1, 1, 1))])
def test_parts_are_joined_with_a_pause_after_each(dim: int, sizes: tuple[int, ...]) -> None:
    shapes = [[size if axis == dim else 5 for axis in range(3)] for size in sizes]
    parts = [torch.randn(shape) for shape in shapes]
    found, pauses = run(parts, sum(sizes), dim)
    assert torch.equal(found, torch.cat(parts, dim))
    assert pauses == len(parts)


def test_what_parts_leave_is_zeros() -> None:
    parts = [torch.randn(2, 3), torch.randn(4, 3)]
    found, _ = run(parts, 9)
    assert torch.equal(found, torch.cat([*parts, torch.zeros(3, 3)]))
    assert torch.equal(run(parts[:1], 4)[0], torch.cat([parts[0], torch.zeros(2, 3)]))


def test_a_single_part_is_not_copied_and_need_not_pause() -> None:
    part = torch.randn(2, 3)
    found, pauses = run([part], 2, pausing=False)
    assert found.data_ptr() == part.data_ptr()
    assert pauses == 0
