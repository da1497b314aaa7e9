"""What a large GPU does with the released sizes: decode, encoders, first token, throughput, parity.

    python -m benchmarks.gpu --output FILE.json [--only PART ...] [--seconds 230]

Weights are random and made on the device (15 GB in bfloat16). Parts run in order of importance; what the time
does not suffice for is named as unmeasured. FILE.json is written after every part, and profiles of a decode
step and of an encoder pass into FILE.txt.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.decode import measure_decode, measure_products
from benchmarks.gpu.encode import measure_encoders
from benchmarks.gpu.machine import Rates, measure_rates
from benchmarks.gpu.parity import measure_parity
from benchmarks.gpu.serve import measure_first_token, measure_throughput
from benchmarks.gpu.targets import judge
from benchmarks.gpu.world import SEED, SIZES, World, say
from benchmarks.record import setup
from model.fused_llama import FusedLlama
from server.engine.build import DTYPES, pick_device, pick_dtype

PARTS: dict[str, Callable[[World, Rates], dict[str, Any]]] = {
    "decode": measure_decode,
    "encoders": lambda world, _: measure_encoders(world),
    "first_token": lambda world, _: measure_first_token(world),
    "throughput": lambda world, _: measure_throughput(world),
    "products": measure_products,
    "parity": lambda world, _: measure_parity(world),
}


def measure(world: World, parts: list[str], seconds: float, output: Path) -> dict[str, Any]:
    """All parts that the time suffices for. A part that raises is reported and the others go on."""
    began = time.perf_counter()
    report: dict[str, Any] = {"setup": _setup(world), "parts": {}, "failed": {}, "unmeasured": []}
    _say(began, "rates")
    rates = measure_rates(world)
    report["rates"] = {"gb_per_s": rates.bytes_per_s / 1e9, "tflop_per_s": rates.flops_per_s / 1e12}
    _say(began, f"{report['rates']}; weights")
    world.model  # noqa: B018 made here, so that its time is told apart
    world.synchronize()
    _say(began, "engine")
    _start_engine(world, report)
    for name in parts:
        if time.perf_counter() - began > seconds:
            report["unmeasured"].append(name)
            continue
        _say(began, name)
        try:
            report["parts"][name] = PARTS[name](world, rates)
        except Exception as error:  # noqa: BLE001 the other parts' figures are worth their time
            report["failed"][name] = repr(error)
            traceback.print_exc()
        report["targets"] = judge(report["parts"] if world.on_gpu and world.size == "released" else {})
        _write(report, world, output)
    report["seconds"] = time.perf_counter() - began
    _write(report, world, output)
    _say(began, "done")
    return report


def _start_engine(world: World, report: dict[str, Any]) -> None:
    """Where the fused kernels fail, the rest is measured without them, and the failure is told."""
    try:
        world.core  # noqa: B018
        return
    except Exception as error:
        if not (world.on_gpu and FusedLlama.supports(world.model.llama)):
            raise
        report["failed"]["fused engine"] = repr(error)
        traceback.print_exc()
    FusedLlama.supports = staticmethod(lambda llama: False)  # type: ignore[method-assign]
    gc.collect()
    torch.cuda.empty_cache()
    world.core  # noqa: B018


def _setup(world: World) -> dict[str, Any]:
    name = torch.cuda.get_device_name(world.device) if world.on_gpu else "cpu"
    return setup(SEED, device=name, dtype=str(world.dtype), size=world.size, weights="random")


def _say(began: float, what: str) -> None:
    say(f"[{time.perf_counter() - began:6.1f} s] {what}")


def _write(report: dict[str, Any], world: World, output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    output.with_suffix(".txt").write_text("\n\n".join(world.tables) + "\n", encoding="utf-8")


def main() -> None:
    """Parse the command line, measure, write, say what was met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--only", choices=list(PARTS), nargs="+", help="these parts alone")
    parser.add_argument("--seconds", type=float, default=230.0, help="no part begins after so many")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=["auto", *DTYPES])
    parser.add_argument("--size", default="released", choices=list(SIZES))
    parser.add_argument("--answer-tokens", type=int, default=128)
    options = parser.parse_args()
    device = pick_device(options.device)
    world = World(device, pick_dtype(options.dtype, device), options.size, options.answer_tokens)
    chosen = [name for name in PARTS if not options.only or name in options.only]
    report = measure(world, chosen, options.seconds, options.output)
    for target in report.get("targets", []):
        say("{name}: {value} (target {target}): {verdict}".format(**target))
    for name, error in report["failed"].items():
        say(f"{name}: FAILED: {error}")
    for name in report["unmeasured"]:
        say(f"{name}: unmeasured")
    if report["failed"]:
        raise SystemExit(1)
