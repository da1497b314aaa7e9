"""Weights in oneDNN's order, and pages read in runs, give what plain weights and single rows give."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model import kv_cache
from model.config import SpeechLLMConfig
from model.kv_cache import KVCache
from model.lora import LoraLinear
from model.prepacked import PackedLinear, pack_linears

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
    assert torch.allclose(lora(x, scale.expand(5, -1)), plain, rtol=0, atol=ATOL)
    lora.merge(scale)
    assert torch.allclose(lora(x, None), plain, rtol=0, atol=ATOL)


def test_runs_of_rows_fit_one_read_and_leave_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = KVCache(SpeechLLMConfig.tiny(400).llama, 40, 4, torch.float32, torch.device("cpu"))
    monkeypatch.setattr(kv_cache, "GATHERED_BYTES", 6 * cache.keys[0, 0].nbytes)
    assert list(cache.read_together([4, 5, 9, 40, 1, 1])) == [(0, 2, 2), (2, 3, 3), (3, 4, 10), (4, 6, 1)]
    assert list(cache.read_together([3])) == [(0, 1, 1)]


def test_pages_in_a_row_are_read_where_they_lie() -> None:
    cache = KVCache(SpeechLLMConfig.tiny(400).llama, 8, 4, torch.float32, torch.device("cpu"))
    cache.keys.normal_()
    cache.values.normal_()
    tables = torch.tensor([[3, 4, 5]])
    in_place = cache.as_slice(tables)
    assert in_place == slice(3, 6)
    for gathered, seen in zip(cache.read(1, tables), cache.read(1, in_place), strict=True):
        assert torch.equal(gathered, seen)
    assert cache.as_slice(torch.tensor([[3, 5, 4]])) is None
    assert cache.as_slice(torch.tensor([[3], [4]])) is None
