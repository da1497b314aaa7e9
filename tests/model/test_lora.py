"""LoRA with a scale per row, batched and merged, against the formula in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.lora import LoraLinear
from tests.model.random_weights import randomize

INPUTS, OUTPUTS, RANK, ROWS = 10, 6, 3, 7


def build(groups: int, dtype: torch.dtype = torch.float64) -> LoraLinear:
    linear = LoraLinear(INPUTS, OUTPUTS, RANK, groups).to(dtype).requires_grad_(False)
    randomize(linear, seed=groups)
    return linear


def plain(linear: LoraLinear, x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """y = xW + ((xA)B) * s, row by row and group by group. [N, groups, out]."""
    weight = linear.weight.numpy().reshape(linear.groups, OUTPUTS, INPUTS)
    rows = []
    for row, s in zip(x, scale, strict=True):
        groups = []
        for w, a, b in zip(weight, linear.lora_A.numpy(), linear.lora_B.numpy(), strict=True):
            groups.append(w @ row + ((row @ a) @ b) * s)
        rows.append(np.stack(groups))
    return np.stack(rows)


@pytest.mark.parametrize("groups", [1, 3])
def test_each_row_has_its_own_scale(groups: int) -> None:
    linear = build(groups)
    x, scale = torch.randn(ROWS, INPUTS).double(), 3 * torch.rand(ROWS, OUTPUTS).double()
    scale[2] = 0.0
    out = linear(x, scale)
    assert out.shape == (ROWS, groups, OUTPUTS)
    assert np.allclose(out.numpy(), plain(linear, x.numpy(), scale.numpy()), rtol=0, atol=1e-12)


def test_no_scale_means_no_lora() -> None:
    linear = build(3)
    x = torch.randn(ROWS, INPUTS).double()
    assert torch.equal(linear(x, None), linear(x, torch.zeros(ROWS, OUTPUTS).double()))


@pytest.mark.parametrize("groups", [1, 3])
def test_merged_equals_batched(groups: int) -> None:
    linear = build(groups)
    x, scale = torch.randn(ROWS, INPUTS).double(), 3 * torch.rand(OUTPUTS).double()
    batched = linear(x, scale.expand(ROWS, -1))
    linear.merge(scale)
    assert torch.allclose(linear(x, scale.expand(ROWS, -1)), batched, rtol=0, atol=1e-12)
    assert torch.allclose(linear(x, None), batched, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_merging_adds_one_rounding_and_no_more(dtype: torch.dtype) -> None:
    linear = build(3, dtype)
    scale = (3 * torch.rand(OUTPUTS)).to(dtype)
    weight = linear.weight.double().view(3, OUTPUTS, INPUTS)
    update = torch.einsum("gir,gro,o->goi", linear.lora_A.double(), linear.lora_B.double(), scale.double())
    once_rounded = (weight + update).to(dtype).flatten(0, 1)
    linear.merge(scale)
    assert linear.weight.dtype == dtype
    assert torch.equal(linear.weight, once_rounded)


def test_merging_frees_the_adapter() -> None:
    linear = build(1)
    linear.merge(torch.ones(OUTPUTS).double())
    assert [name for name, _ in linear.named_parameters()] == ["weight"]
    assert linear.merged
