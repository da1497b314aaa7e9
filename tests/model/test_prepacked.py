"""Weights in oneDNN's order give what plain weights give."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model import prepacked
from model.lora import LoraLinear
from model.prepacked import PackedLinear, gelu_of, gelu_planless, pack_linears, sum_with
from server.os_process import computing_environment

ATOL = 1e-5
"""Sums of 64 products of numbers near 1, in another order."""


@pytest.mark.parametrize("rows", [1, 2, 7, 40])
@pytest.mark.parametrize("bias", [False, True])
def test_a_packed_layer_is_the_plain_one(rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(64, 96, bias=bias).requires_grad_(False)
    holder = nn.Sequential(plain)
    left = pack_linears(holder, 1e6)
    packed = holder[0]
    assert isinstance(packed, PackedLinear)
    assert left == 1e6 - plain.weight.nbytes
    x = torch.randn(3, rows, 64)
    assert torch.allclose(packed(x[0]), plain(x[0]), rtol=0, atol=ATOL)
    assert torch.allclose(packed(x), plain(x), rtol=0, atol=ATOL)
    assert list(holder.state_dict()) == list(nn.Sequential(plain).state_dict())


@pytest.mark.parametrize("rows", [1, 2, 7, 40])
@pytest.mark.parametrize("large", [1, prepacked.LARGE])
def test_what_follows_a_packed_layer_is_what_follows_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, rows: int, large: int
) -> None:
    monkeypatch.setattr(prepacked, "LARGE", large)
    torch.manual_seed(0)
    plain = nn.Linear(64, 96).requires_grad_(False)
    packed = PackedLinear.of(plain)
    x, added = 4 * torch.randn(rows, 64), torch.randn(rows, 96)
    assert torch.allclose(gelu_of(packed, x), F.gelu(plain(x)), rtol=0, atol=ATOL)
    assert torch.allclose(gelu_of(plain, x), F.gelu(plain(x)), rtol=0, atol=ATOL)
    assert torch.allclose(sum_with(added, packed, x), added + plain(x), rtol=0, atol=ATOL)
    assert torch.equal(sum_with(added, plain, x), added + plain(x))


@pytest.mark.parametrize("shape", [(7,), (1, 7), (5, 7), (2, 5, 7)])
def test_gelu_without_a_plan_is_gelu(shape: tuple[int, ...]) -> None:
    x = 4 * torch.randn(shape)
    expected = F.gelu(x)
    found = gelu_planless(x)
    assert found.is_contiguous()
    assert found.data_ptr() == x.data_ptr()
    assert torch.allclose(found, expected, rtol=0, atol=ATOL)


def test_only_what_fits_and_only_float32_is_packed() -> None:
    layers = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64).double())
    layers.requires_grad_(False)
    assert pack_linears(layers, 1.5 * 64 * 64 * 4) == 0.5 * 64 * 64 * 4
    assert [isinstance(layer, PackedLinear) for layer in layers] == [True, False, False]


def test_a_merge_is_not_hidden_by_the_packed_weight() -> None:
    torch.manual_seed(1)
    lora = LoraLinear(64, 64, 4, groups=3).requires_grad_(False)
    for parameter in lora.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, scale = torch.randn(5, 64), torch.rand(64)
    plain = lora(x, scale.expand(5, -1))
    assert lora.prepack(1e6) < 1e6
    assert torch.allclose(lora.served().times(x)[:, :192], x @ lora.weight.t(), rtol=0, atol=ATOL)
    assert torch.allclose(lora(x, scale.expand(5, -1)), plain, rtol=0, atol=ATOL)
    lora.merge(scale)
    assert lora.served().packed is None
    assert torch.allclose(lora.served().times(x).view(5, 3, 64), plain, rtol=0, atol=ATOL)


def test_memory_does_not_grow_with_every_number_of_rows() -> None:
    """A process that computes keeps few of oneDNN's plans; by default these would be 130 MiB and more."""
    program = """
import psutil, torch
from model.prepacked import pack, product
weight = torch.randn(64, 64)
packed = pack(weight)
def resident(numbers):
    for rows in numbers:
        product(torch.ones(rows, 64), weight, packed)
    return psutil.Process().memory_info().rss / 2**20
print(-resident(range(2, 130)) + resident(range(130, 700)))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=computing_environment())
    assert float(done.stdout) < 40
