"""The two ceilings, measured: bytes a second of a copy, operations a second of a matrix product."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.gpu.world import World


@dataclass(frozen=True, slots=True)
class Rates:
    """bytes_per_s counts what a copy reads and writes. flops_per_s: of the model's dtype."""

    bytes_per_s: float
    flops_per_s: float


@torch.inference_mode()
def measure_rates(world: World) -> Rates:
    """On random data, several times the caches' size on a GPU."""
    count = 2**31 if world.is_real else 2**22
    source = torch.empty(count // world.dtype.itemsize, dtype=world.dtype, device=world.device).normal_()
    target = torch.empty_like(source)
    copy_s = world.seconds(lambda: target.copy_(source), repeats=10)
    edge = 8192 if world.is_real else 256
    left, right = (torch.randn(edge, edge, dtype=world.dtype, device=world.device) for _ in range(2))
    product_s = world.seconds(lambda: left @ right, repeats=10)
    return Rates(2 * source.nbytes / copy_s, 2.0 * edge**3 / product_s)
