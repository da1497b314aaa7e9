"""The decoder's kernels against the plain forward: Numba's, and on a GPU Triton's.

Triton's run on a CPU too, slowly: triton installed, TRITON_INTERPRET=1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from model.config import LlamaConfig, LoraConfig
from model.fused_llama import FusedLlama
from model.kv_cache import KVCache
from model.llama import DecodeRows, FlatBatch, Llama, PrefillSpan
from model.numba_ops import FEW_ROWS, SHARE_BYTES, NumbaOps
from tests.model.random_weights import randomize

SIZES = LlamaConfig(256, 2, 4, 352, 128, max_position_embeddings=256)
PAGE = 16
GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MANY = [[1], [16], [200], [17, 1, 150], [33] * (2 * FEW_ROWS + 2)]
HALF = torch.bfloat16 if GPU.type == "cuda" else torch.float16  # Triton's interpreter has no bfloat16 dot
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Of the norm of the difference to the norm of the reference. bfloat16 keeps 8 bits, float16 11; the plain
forward, too, rounds after every step."""


@dataclasses.dataclass(frozen=True)
class Side:
    """Where kernels run, in which types."""

    ops: Any
    device: torch.device
    dtypes: tuple[torch.dtype, ...]
    contexts: list[list[int]]


@pytest.fixture(scope="module", params=["numba", pytest.param("triton", marks=pytest.mark.gpu)])
def side(request: pytest.FixtureRequest) -> Side:
    if request.param == "numba":
        return Side(NumbaOps(), torch.device("cpu"), (torch.float32, torch.float64), MANY)
    pytest.importorskip("triton")
    from model import triton_ops

    few = MANY if GPU.type == "cuda" else [[40], [17, 1, 50]]
    return Side(triton_ops, GPU, (torch.float32, HALF), few)


@pytest.fixture(autouse=True)
def _exact_products() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.set_num_threads(before)


def small(side: Side, dtype: torch.dtype = torch.float32, rank: int = 8) -> Llama:
    llama = Llama(SIZES, LoraConfig(rank))
    randomize(llama)
    return llama.to(side.device, dtype).eval().requires_grad_(False)


def far(got: Tensor, expected: Tensor) -> float:
    assert got.isfinite().all()
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def filled(side: Side, dtype: torch.dtype = torch.float32, pages: int = 256) -> KVCache:
    cache = KVCache(SIZES, pages, PAGE, dtype, side.device)
    cache.keys.normal_()
    cache.values.normal_()
    return cache


def decode_batch(side: Side, contexts: list[int], dtype: torch.dtype = torch.float32) -> FlatBatch:
    """One token each of sequences of these lengths, their pages scattered over the cache."""
    width = -(-max(contexts) // PAGE)
    order = torch.randperm(256)[: width * len(contexts)].view(len(contexts), width)
    tables = [row[: -(-n // PAGE)].tolist() for row, n in zip(order, contexts, strict=True)]
    ends = [n - 1 for n in contexts]
    slots = [table[end // PAGE] * PAGE + end % PAGE for table, end in zip(tables, ends, strict=True)]
    padded = [table + table[:1] * (width - len(table)) for table in tables]
    positions = torch.tensor(contexts, device=side.device) - 1
    size = SIZES.hidden_size
    return FlatBatch(
        torch.randn(len(contexts), size, device=side.device, dtype=dtype),
        positions,
        torch.tensor(slots, device=side.device),
        2 * torch.rand(len(contexts), size, device=side.device).to(dtype),
        (),
        DecodeRows(0, torch.tensor(padded, device=side.device), positions + 1),
    )


def both(
    side: Side, llama: Llama, batch: FlatBatch, cache: KVCache
) -> tuple[Tensor, Tensor, KVCache, KVCache]:
    """Fused and plain hidden states, and the caches they leave."""
    caches = []
    for _ in range(2):
        copy = KVCache(SIZES, cache.num_pages, PAGE, cache.keys.dtype, side.device)
        copy.keys.copy_(cache.keys)
        copy.values.copy_(cache.values)
        caches.append(copy)
    with torch.inference_mode():
        plain = llama(batch, caches[0])
        fused = FusedLlama(llama, side.ops).forward(batch, caches[1])
    return fused, plain, caches[1], caches[0]


def test_a_decode_step_is_the_plain_one(side: Side) -> None:
    for contexts in side.contexts:
        for dtype in side.dtypes:
            batch, cache = decode_batch(side, contexts, dtype), filled(side, dtype)
            fused, plain, written, expected = both(side, small(side, dtype), batch, cache)
            assert far(fused, plain) < TOLERANCE[dtype], (contexts, dtype)
            assert far(written.keys, expected.keys) < TOLERANCE[dtype]
            assert far(written.values, expected.values) < TOLERANCE[dtype]


def test_chunks_and_decoding_rows_of_one_batch_are_the_plain_ones(side: Side) -> None:
    batch = decode_batch(side, [30, 5])
    assert batch.decodes is not None
    assert batch.scale is not None
    chunk, start = 20, 10
    taken = batch.decodes.pages.flatten().tolist()
    pages = torch.tensor([page for page in range(64) if page not in taken][:2], device=side.device)
    own = torch.arange(start, start + chunk, device=side.device)
    mixed = FlatBatch(
        torch.cat([torch.randn(chunk, SIZES.hidden_size, device=side.device), batch.embeddings]),
        torch.cat([own, batch.positions]),
        torch.cat([pages[own // PAGE] * PAGE + own % PAGE, batch.slots]),
        torch.cat([torch.zeros(chunk, SIZES.hidden_size, device=side.device), batch.scale]),
        (PrefillSpan(0, chunk, pages, start + chunk),),
        dataclasses.replace(batch.decodes, start=chunk),
    )
    fused, plain, written, expected = both(side, small(side), mixed, filled(side))
    assert far(fused, plain) < TOLERANCE[torch.float32]
    assert far(written.keys, expected.keys) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("rows", [1, 3])
def test_merged_weights_and_logits_are_the_plain_ones(side: Side, rows: int) -> None:
    llama = small(side)
    llama.merge(torch.rand(SIZES.hidden_size, device=side.device))
    fused, plain, *_ = both(side, llama, decode_batch(side, [40] * rows), filled(side))
    assert far(fused, plain) < TOLERANCE[torch.float32]
    with torch.inference_mode():
        assert far(FusedLlama(llama, side.ops).logits(plain), llama.logits(plain)) < TOLERANCE[torch.float32]


def test_stacking_leaves_the_parameters_their_values(side: Side) -> None:
    llama = small(side)
    linear = llama.blocks[0].attention.qkv
    before = linear.weight.clone(), linear.lora_A.clone()
    x, scale = torch.randn(3, 256, device=side.device), torch.rand(3, 256, device=side.device)
    expected = linear(x, scale)
    stacked = linear.served().plain
    assert torch.equal(linear.weight, before[0])
    assert torch.equal(linear.lora_A, before[1])
    assert far(linear(x, scale), expected) < 1e-6
    assert stacked.data_ptr() == linear.weight.data_ptr()


def test_slots_past_a_context_are_never_read() -> None:
    side = Side(NumbaOps(), torch.device("cpu"), (), [])
    batch, cache = decode_batch(side, [3, 20]), filled(side)
    assert batch.decodes is not None
    expected = both(side, small(side), batch, cache)[0]
    for pages, context in zip(batch.decodes.pages, (3, 20), strict=True):
        last = pages[(context - 1) // PAGE]
        cache.keys[:, last, (context - 1) % PAGE + 1 :] = float("nan")
        cache.values[:, last, (context - 1) % PAGE + 1 :] = float("nan")
    with torch.inference_mode():
        got = FusedLlama(small(side), side.ops).forward(batch, cache)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("batch", [1, 3])
def test_threads_that_share_attention_change_nothing(batch: int) -> None:
    contexts = torch.full((batch,), SHARE_BYTES // (64 * 4 * 2 * 4) + 7)
    pages = -(-int(contexts[0]) // PAGE)
    keys, values = torch.randn(2, batch * pages, PAGE, 4, 64)
    query, tables = torch.randn(batch, 4, 64), torch.randperm(batch * pages).view(batch, pages)
    got = []
    for num_threads in (1, 3):
        torch.set_num_threads(num_threads)
        got.append(NumbaOps().paged_attention(query, keys, values, tables, contexts))
    assert torch.equal(*got)
