"""The decoder's kernels against the plain forward: Numba's, and on a GPU Triton's.

Triton's run on a CPU too, slowly: triton installed, TRITON_INTERPRET=1.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit
from torch import Tensor

from model.config import LlamaConfig, LoraConfig
from model.decode_step import heads_at_a_time
from model.fused_llama import MOST_ROWS, FusedLlama, _runs, most_rows
from model.kv_cache import KVCache
from model.llama import DecodeRows, FlatBatch, Llama, PrefillSpan
from model.numba_kernels import COUNTERS, OPTIONS, add_to, look_at, take, take_another, wait
from model.numba_ops import SHARE_BYTES, NumbaOps
from tests.model.random_weights import randomize

SIZES = LlamaConfig(256, 2, 4, 352, 128, max_position_embeddings=256)
PAGE = 16
GPU = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MANY = [[1], [16], [200], [17, 1, 150], [33] * (MOST_ROWS + 1)]
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


@pytest.mark.parametrize("contexts", [[3, 20], [3, 20] * MOST_ROWS], ids=["few", "many"])
def test_slots_past_a_context_are_never_read(side: Side, contexts: list[int]) -> None:
    """What a broken request left there is nobody's: 0 times NaN is NaN."""
    batch, cache = decode_batch(side, contexts), filled(side)
    assert batch.decodes is not None
    expected = both(side, small(side), batch, cache)[0]
    for pages, context in zip(batch.decodes.pages, contexts, strict=True):
        last = pages[(context - 1) // PAGE]
        cache.keys[:, last, (context - 1) % PAGE + 1 :] = float("nan")
        cache.values[:, last, (context - 1) % PAGE + 1 :] = float("nan")
    with torch.inference_mode():
        got = FusedLlama(small(side), side.ops).forward(batch, cache)
    assert far(got, expected) < 1e-6


@pytest.mark.parametrize("rank", [8, 5])
def test_a_step_of_any_few_sequences_is_the_plain_one(rank: int) -> None:
    """Products go four rows and two outputs at a time: every remainder, and an odd number of outputs."""
    side = Side(NumbaOps(), torch.device("cpu"), (), [])
    llama = small(side, torch.float64, rank)
    for rows in range(1, MOST_ROWS + 1):
        batch = decode_batch(side, [7 + 3 * row for row in range(rows)], torch.float64)
        fused, plain, written, expected = both(side, llama, batch, filled(side, torch.float64))
        assert far(fused, plain) < TOLERANCE[torch.float64], rows
        assert far(written.keys, expected.keys) < TOLERANCE[torch.float64]


class Lagging(Executor):
    """Runs nothing until it is told to."""

    def __init__(self) -> None:
        self.late: list[Callable[[], object]] = []

    def submit(self, run: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.late.append(partial(run, *args, **kwargs))
        return Future()


class Hasty(Executor):
    """Has done it before anybody else can begin."""

    def submit(self, run: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(run(*args, **kwargs))
        return done


class Exhausted(Executor):
    """A system that gives no threads."""

    def submit(self, run: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        raise RuntimeError("can't start new thread")


def test_threads_that_share_a_step_change_nothing_however_late_they_come() -> None:
    side = Side(NumbaOps(), torch.device("cpu"), (), [])
    llama, batch, cache = small(side), decode_batch(side, [150, 20, 40]), filled(side)
    got, lagging = [], Lagging()
    pools = ((1, None), (2, None), (3, None), (5, None), (2, Hasty()), (2, Exhausted()), (3, lagging))
    with torch.inference_mode():
        for num_threads, pool in pools:
            torch.set_num_threads(num_threads)
            fused = FusedLlama(llama, side.ops)
            if pool is not None:
                fused._decode_step._pool = pool  # type: ignore[union-attr, assignment]
            got.append(fused.forward(batch, cache))
    kept = got[-1].clone(), cache.keys.clone()
    assert all(torch.equal(one, got[0]) for one in got)
    assert len(lagging.late) == 2
    for run in lagging.late:
        run()
    assert torch.equal(got[-1], kept[0])
    assert torch.equal(cache.keys, kept[1])


@pytest.mark.parametrize(
    ("num_heads", "num_threads", "heads"), [(16, 1, 16), (16, 2, 8), (32, 3, 8), (32, 7, 4), (12, 64, 1)]
)
def test_heads_are_shared_by_as_many_threads_as_there_are(
    num_heads: int, num_threads: int, heads: int
) -> None:
    assert heads_at_a_time(num_heads, num_threads) == heads


@njit(**OPTIONS)  # not kept: code from another file is in it
def count(arrived: Any, num_threads: int, counters: Any, pieces: int, hits: Any, early: Any) -> None:
    """Phases that add to `hits` [phases, pieces]; early: pieces that saw the one before unfinished."""
    add_to(arrived.ctypes.data, 1)
    while look_at(arrived.ctypes.data) < num_threads:
        continue
    for phase in range(len(hits)):
        piece = take(counters, phase)
        while piece < pieces:
            if phase and hits[phase - 1].min() == 0:
                early[piece] += 1
            hits[phase, piece] += 1
            piece = take_another(counters, phase)
        wait(counters, phase, pieces)


def test_every_piece_is_taken_once_and_after_the_phase_before() -> None:
    phases, pieces, num_threads = 20_000, 7, 2
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in range(5):
            hits, early = np.zeros((phases, pieces), np.int64), np.zeros(pieces, np.int64)
            counters, arrived = np.zeros((phases, COUNTERS), np.int64), np.zeros(1, np.int64)
            arguments = arrived, num_threads, counters, pieces, hits, early
            for run in [pool.submit(count, *arguments) for _ in range(num_threads)]:
                run.result(30)
            assert (hits == 1).all()
            assert not early.any()
            assert (counters[:, 0] == pieces + num_threads).all()


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


def test_a_gpu_on_which_triton_runs_nothing_has_no_kernels(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As with a cache directory that is mounted noexec: found, and of no use."""

    def refuse(*_: object) -> Tensor:
        raise OSError("failed to map segment from shared object")

    monkeypatch.setitem(sys.modules, "model.triton_ops", SimpleNamespace(norm=refuse))
    monkeypatch.setattr("model.triton_ops", SimpleNamespace(norm=refuse), raising=False)
    assert not _runs(torch.device("cpu"))
    assert "failed to map segment" in caplog.text


@pytest.mark.parametrize(
    ("capability", "hidden_size", "rows"),
    [("AVX2", 4096, 12), ("AVX512", 1024, 4), ("AVX512", 320, 12), ("DEFAULT", 1024, 12)],
)
def test_wide_steps_are_left_to_products_that_are_wider(
    capability: str, hidden_size: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    assert most_rows(hidden_size) == rows
