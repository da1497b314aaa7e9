"""The decoder's fused kernels against the plain forward. On a CPU: triton installed, TRITON_INTERPRET=1."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from model.config import LlamaConfig, LoraConfig
from model.kv_cache import KVCache
from model.llama import DecodeRows, FlatBatch, Llama, PrefillSpan
from tests.model.random_weights import randomize

pytestmark = pytest.mark.gpu

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SIZES = LlamaConfig(256, 2, 4, 352, 128, max_position_embeddings=256)
PAGE = 16
CONTEXTS = [[1], [16], [200], [17, 1, 150], [33] * 18] if torch.cuda.is_available() else [[40], [17, 1, 50]]
HALF = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16  # Triton's interpreter has no bfloat16 dot
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
"""Of the norm of the difference to the norm of the reference. bfloat16 keeps 8 bits, float16 11; the plain
forward, too, rounds after every step."""


@pytest.fixture(autouse=True)
def _exact_products() -> None:
    pytest.importorskip("triton")
    torch.backends.cuda.matmul.allow_tf32 = False


def small(dtype: torch.dtype, rank: int = 8) -> Llama:
    llama = Llama(SIZES, LoraConfig(rank))
    randomize(llama)
    return llama.to(DEVICE, dtype).eval().requires_grad_(False)


def far(got: Tensor, expected: Tensor) -> float:
    assert got.isfinite().all()
    return float((got.double() - expected.double()).norm() / expected.double().norm())


def filled(dtype: torch.dtype, pages: int = 64) -> KVCache:
    cache = KVCache(SIZES, pages, PAGE, dtype, DEVICE)
    cache.keys.normal_()
    cache.values.normal_()
    return cache


def decode_batch(contexts: list[int], dtype: torch.dtype) -> FlatBatch:
    """One token each of sequences of these lengths, their pages scattered over the cache."""
    width = -(-max(contexts) // PAGE)
    order = torch.randperm(64)[: width * len(contexts)].view(len(contexts), width)
    tables = [row[: -(-n // PAGE)].tolist() for row, n in zip(order, contexts, strict=True)]
    ends = [n - 1 for n in contexts]
    slots = [table[end // PAGE] * PAGE + end % PAGE for table, end in zip(tables, ends, strict=True)]
    padded = [table + table[:1] * (width - len(table)) for table in tables]
    positions = torch.tensor(contexts, device=DEVICE) - 1
    size = SIZES.hidden_size
    return FlatBatch(
        torch.randn(len(contexts), size, device=DEVICE, dtype=dtype),
        positions,
        torch.tensor(slots, device=DEVICE),
        2 * torch.rand(len(contexts), size, device=DEVICE).to(dtype),
        (),
        DecodeRows(0, torch.tensor(padded, device=DEVICE), positions + 1),
    )


def both(llama: Llama, batch: FlatBatch, cache: KVCache) -> tuple[Tensor, Tensor, KVCache, KVCache]:
    """Fused and plain hidden states, and the caches they leave."""
    from model.fused_llama import FusedLlama

    caches = []
    for _ in range(2):
        copy = KVCache(SIZES, cache.num_pages, PAGE, cache.keys.dtype, DEVICE)
        copy.keys.copy_(cache.keys)
        copy.values.copy_(cache.values)
        caches.append(copy)
    with torch.inference_mode():
        plain = llama(batch, caches[0])
        fused = FusedLlama(llama).forward(batch, caches[1])
    return fused, plain, caches[1], caches[0]


@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("contexts", CONTEXTS)
def test_a_decode_step_is_the_plain_one(contexts: list[int], dtype: torch.dtype) -> None:
    fused, plain, written, expected = both(small(dtype), decode_batch(contexts, dtype), filled(dtype))
    assert far(fused, plain) < TOLERANCE[dtype]
    assert far(written.keys, expected.keys) < TOLERANCE[dtype]
    assert far(written.values, expected.values) < TOLERANCE[dtype]


def test_chunks_and_decoding_rows_of_one_batch_are_the_plain_ones() -> None:
    batch = decode_batch([30, 5], torch.float32)
    assert batch.decodes is not None
    assert batch.scale is not None
    chunk, start = 20, 10
    taken = batch.decodes.pages.flatten().tolist()
    pages = torch.tensor([page for page in range(64) if page not in taken][:2], device=DEVICE)
    own = torch.arange(start, start + chunk, device=DEVICE)
    mixed = FlatBatch(
        torch.cat([torch.randn(chunk, SIZES.hidden_size, device=DEVICE), batch.embeddings]),
        torch.cat([own, batch.positions]),
        torch.cat([pages[own // PAGE] * PAGE + own % PAGE, batch.slots]),
        torch.cat([torch.zeros(chunk, SIZES.hidden_size, device=DEVICE), batch.scale]),
        (PrefillSpan(0, chunk, pages, start + chunk),),
        dataclasses.replace(batch.decodes, start=chunk),
    )
    fused, plain, written, expected = both(small(torch.float32), mixed, filled(torch.float32))
    assert far(fused, plain) < TOLERANCE[torch.float32]
    assert far(written.keys, expected.keys) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("rows", [1, 3])
def test_merged_weights_and_logits_are_the_plain_ones(rows: int) -> None:
    from model.fused_llama import FusedLlama

    llama = small(torch.float32)
    llama.merge(torch.rand(SIZES.hidden_size, device=DEVICE))
    fused, plain, *_ = both(llama, decode_batch([40] * rows, torch.float32), filled(torch.float32))
    assert far(fused, plain) < TOLERANCE[torch.float32]
    with torch.inference_mode():
        assert far(FusedLlama(llama).logits(plain), llama.logits(plain)) < TOLERANCE[torch.float32]


def test_packing_leaves_the_parameters_their_values() -> None:
    llama = small(torch.float32)
    linear = llama.blocks[0].attention.qkv
    before = linear.weight.clone(), linear.lora_A.clone()
    x, scale = torch.randn(3, 256, device=DEVICE), torch.rand(3, 256, device=DEVICE)
    expected = linear(x, scale)
    packed = linear.stacked()
    assert torch.equal(linear.weight, before[0])
    assert torch.equal(linear.lora_A, before[1])
    assert far(linear(x, scale), expected) < 1e-6
    assert packed.data_ptr() == linear.weight.data_ptr()
