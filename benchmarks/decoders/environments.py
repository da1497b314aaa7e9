"""The environments of the peers, made by `make bench-env`, and how their processes compute."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from benchmarks.peers.served import own_environment
from benchmarks.sizes import ROOT, WORK
from server.bench.types import BenchError

ENVIRONMENTS = ROOT / "build" / "bench-env"
LLAMACPP = ENVIRONMENTS / "llamacpp"
VLLM = ENVIRONMENTS / "vllm"
VLLM_OPENMP = "lib/libiomp5.so"
"""Intel's OpenMP, which vLLM's documentation asks to load first."""


def python_of(environment: Path) -> str:
    """Its interpreter. Raises BenchError where the environment is not there."""
    path = environment / "bin" / "python"
    if not path.exists():
        raise BenchError(f"no {environment.relative_to(ROOT)}: run `make bench-env`")
    return str(path)


def computing() -> dict[str, str]:
    """As our engine's process computes: as many threads, waiting alike. No hub is asked for anything."""
    threads = str(torch.get_num_threads())
    return {**own_environment(), "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}


def vllm_computing() -> dict[str, str]:
    """For vLLM: all cores (it would leave one to its front end), 1 GiB of cache, nothing sent home."""
    return {
        **computing(),
        "LD_PRELOAD": str(VLLM / VLLM_OPENMP),
        "PATH": os.pathsep.join([str(VLLM / "bin"), os.environ["PATH"]]),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CACHE_ROOT": str(WORK / "vllm-cache"),
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
