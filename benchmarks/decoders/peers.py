"""The peers, started: names and decoders, with the name of the one that targets are about first."""

from __future__ import annotations

import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import torch

from benchmarks.decoders.decoders import Completions, Decoder, PipedDecoder, ServedDecoder
from benchmarks.decoders.environments import LLAMACPP, VLLM, computing, python_of, vllm_computing
from benchmarks.decoders.prompts import Shape
from benchmarks.decoders.weights import GGUF_FOLDER, HF_FOLDER, derived, write_hf
from benchmarks.peers.served import Served, free_port
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


async def start_transformers(model: Path, shape: Shape, stack: AsyncExitStack) -> dict[str, Decoder]:
    """`generate_batch`, in our own environment."""
    folder = derived(model, HF_FOLDER, write_hf)
    sizes = (str(shape.largest_batch * shape.most_tokens), str(shape.largest_batch))
    command = [sys.executable, "-m", f"{WORKERS}.transformers_worker", str(folder), *sizes]
    return {"transformers": stack.enter_context(PipedDecoder(command, computing()))}


async def start_llamacpp(model: Path, shape: Shape, stack: AsyncExitStack) -> dict[str, Decoder]:
    """llama.cpp's server with the weights in float32, and in float16. Raises BenchError without gguf."""
    try:
        from benchmarks.decoders.gguf_file import DTYPES, gguf_path, write_gguf
    except ModuleNotFoundError as error:
        raise BenchError("gguf is not installed: run `make bench-env`") from error
    folder = derived(model, GGUF_FOLDER, write_gguf)
    started: dict[str, Decoder] = {}
    for dtype in DTYPES:
        port = free_port()
        numbers = (port, shape.largest_batch, shape.most_tokens, torch.get_num_threads())
        command = [f"{WORKERS}.llamacpp_server", str(gguf_path(folder, dtype)), dtype, *map(str, numbers)]
        python = python_of(LLAMACPP)
        server = Served(command, port, "/health", python=python, environment=computing())
        decoder = ServedDecoder(
            stack.enter_context(server), LLAMACPP_API, {"xllamacpp": version_in(python, "xllamacpp")}
        )
        stack.push_async_callback(decoder.aclose)
        started[f"llama.cpp {dtype}"] = decoder
    return started


async def start_vllm(model: Path, shape: Shape, stack: AsyncExitStack) -> dict[str, Decoder]:
    """vLLM's offline engine, and its server."""
    folder, python = derived(model, HF_FOLDER, write_hf), python_of(VLLM)
    sizes = (str(shape.most_tokens), str(shape.largest_batch))
    command = [python, "-m", f"{WORKERS}.vllm_worker", str(folder), *sizes]
    offline = stack.enter_context(PipedDecoder(command, vllm_computing()))
    port = free_port()
    flags = {"model": folder, "host": "127.0.0.1", "port": port, "dtype": "float32"}
    flags |= {"max-model-len": shape.most_tokens, "max-num-seqs": shape.largest_batch}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    words += ["--no-enable-prefix-caching", "--disable-uvicorn-access-log"]
    server = Served(
        ["vllm.entrypoints.openai.api_server", *words],
        port,
        "/health",
        python=python,
        environment=vllm_computing(),
    )
    online = ServedDecoder(stack.enter_context(server), VLLM_API, offline.versions)
    stack.push_async_callback(online.aclose)
    return {"vllm": offline, "vllm serve": online}


def version_in(python: str, package: str) -> str:
    """Of a package in another environment."""
    code = f"import importlib.metadata as m; print(m.version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
