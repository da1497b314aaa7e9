"""A decode step beside what memory and matrix rate allow, with graphs and without."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.machine import Rates
from benchmarks.gpu.world import PAGE_SIZE, SEED, World, say
from model.kv_cache import KVCache
from model.llama import DecodeRows, FlatBatch
from server.engine.decode_graph import DecodeRow

BATCHES = (1, 64, 16)
TINY_BATCHES = (1, 4)
GEMV_SHAPES = ((4, 1024, 4), (8, 512, 4), (4, 2048, 4), (2, 2048, 4), (8, 1024, 8))


@dataclass(frozen=True, slots=True)
class Floor:
    """Bytes and operations of one step that no implementation saves."""

    bytes: float
    flops: float

    def seconds(self, rates: Rates) -> float:
        """The longer of the two at the measured rates."""
        return max(self.bytes / rates.bytes_per_s, self.flops / rates.flops_per_s)


def floor_of(world: World, batch: int, context: int) -> Floor:
    """Every weight but the embedding's once, all keys and values once, two operations a weight and row."""
    llama = world.model.llama
    embedding = llama.embed_tokens.weight
    weights = sum(p.nbytes for p in llama.parameters()) - embedding.nbytes
    per_token = KVCache.bytes_per_page(llama.config, 1, world.dtype)
    flops = 2.0 * batch * weights / world.dtype.itemsize
    return Floor(weights + batch * context * per_token, flops)


def rows_of(world: World, batch: int) -> list[DecodeRow]:
    """Sequences at the same context, pages scattered over the cache."""
    cache = world.core.runner.cache
    rng = random.Random(SEED)
    each = world.context // PAGE_SIZE
    pages = rng.sample(range(world.most_rows * each), batch * each)
    scale = torch.rand(world.config.llama.hidden_size, device=world.device).to(world.dtype)
    assert cache.num_pages >= world.most_rows * each
    tables = [pages[i * each : (i + 1) * each] for i in range(batch)]
    return [DecodeRow(rng.randrange(3, 500), world.context - 1, table, scale) for table in tables]


def flat(world: World, rows: list[DecodeRow]) -> FlatBatch:
    """The same rows as a forward without graphs takes them."""
    slots = [row.pages[row.position // PAGE_SIZE] * PAGE_SIZE + row.position % PAGE_SIZE for row in rows]
    positions = torch.tensor([row.position for row in rows], device=world.device)
    return FlatBatch(
        world.model.embed_tokens(torch.tensor([row.token for row in rows], device=world.device)),
        positions,
        torch.tensor(slots, device=world.device),
        torch.stack([row.scale for row in rows]),
        (),
        DecodeRows(0, torch.tensor([row.pages for row in rows], device=world.device), positions + 1),
    )


@torch.inference_mode()
def measure_decode(world: World, rates: Rates) -> dict[str, Any]:
    """Milliseconds a step by batch, and the floor's share of it."""
    runner = world.core.runner
    runner.cache.keys.normal_()
    runner.cache.values.normal_()
    figures: dict[str, Any] = {"context": world.context}
    batches = BATCHES if world.is_real else TINY_BATCHES
    for batch in batches:
        rows = rows_of(world, batch)
        floor = floor_of(world, batch, world.context)
        figure: dict[str, Any] = {
            "floor_ms": 1e3 * floor.seconds(rates),
            "floor_gb": floor.bytes / 1e9,
            "floor_tflop": floor.flops / 1e12,
        }
        if batch == 1:
            figure["weights_ms"] = 1e3 * floor_of(world, 1, 0).bytes / rates.bytes_per_s
        ways = _ways(world, rows)
        for name, work in ways.items():
            figure[f"{name}_ms"] = 1e3 * world.seconds(work)
        best = figure.get("graph_step_ms", figure["plain_ms"])
        figure["share_of_floor"] = figure["floor_ms"] / best
        if batch == 1:
            figure["over_weights"] = best / figure["weights_ms"]
        figures[f"batch_{batch}"] = figure
        say(f"  batch {batch}: {figure}")
        if batch in batches[:2]:
            world.trace(f"decode, batch {batch}", next(iter(ways.values())))
    return figures


def _ways(world: World, rows: list[DecodeRow]) -> dict[str, Any]:
    """graph_step: with the copies to and from the host. graph: the device's part. fused, plain: launched."""
    runner, batch = world.core.runner, flat(world, rows)
    graphs, fused, cache = runner.graphs, runner.fused, runner.cache
    ways: dict[str, Any] = {}
    if graphs is not None and fused is not None:
        ways["graph_step"] = lambda: graphs.step(rows)
        ways["graph"] = lambda: graphs.replay(len(rows))
        ways["fused"] = lambda: fused.logits(fused.forward(batch, cache))
    ways["plain"] = lambda: world.model.logits(world.model(batch, cache))
    return ways


@torch.inference_mode()
def measure_products(world: World, rates: Rates) -> dict[str, Any]:
    """GB/s of one row's products, by torch and by the kernel's tile. Weights in turn: no cache helps."""
    if world.core.runner.graphs is None:
        return {}
    from model import triton_ops

    config = world.config.llama
    size, wide = config.hidden_size, config.intermediate_size
    shapes = {"qkv": (3 * size, size), "o": (size, size), "gate_up": (2 * wide, size), "down": (size, wide)}
    figures: dict[str, Any] = {}
    for name, (rows, columns) in shapes.items():
        weights = [torch.randn(rows, columns, device=world.device, dtype=world.dtype) for _ in range(4)]
        x = torch.randn(1, columns, device=world.device, dtype=world.dtype)
        total = sum(weight.nbytes for weight in weights)
        ways: dict[str, Any] = {"linear": lambda w: F.linear(x, w)}  # noqa: B023 called before the next turn
        for shape in GEMV_SHAPES:
            ways[f"gemv {shape}"] = lambda w, s=shape: triton_ops.gemv(x, w, shape=s)  # noqa: B023
        for way, product in ways.items():
            graph = _captured(lambda: [product(w) for w in weights])  # noqa: B023
            seconds = world.queued_seconds(graph.replay)
            figures[f"{name}, {way}"] = round(total / seconds / 1e9)
    for name, figure in figures.items():
        say(f"  {name}: {figure} GB/s of {rates.bytes_per_s / 1e9:.0f}")
    return figures


def _captured(work: Any) -> torch.cuda.CUDAGraph:
    """A graph of `work`, so that launches cost nothing."""
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(aside):
        work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph
