"""How much sooner 16 requests end together than one after another, and what shared clips save.

    python benchmarks/concurrency.py [--model DIR] [--requests 16] [--tokens 128] [--output FILE]

Every request has its own clip (2 to 6 s of noise) and its own instruction. Both arms run on one engine
process, as `wavllm serve` has it: cold (each arm meets clips and instructions it has not seen) and warm
(audio embeddings, scales and prefixes are cached). Without --model a model of random weights that never
ends an answer early is made, so that every answer has all its tokens. Writes one JSON line, prints a table.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import hashlib
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from model.config import SpeechLLMConfig
from model.tiny import make_tiny
from server.engine_process import EngineProcess
from server.types import EngineConfig, Failed, Finished, GenerateRequest, SamplingParams

SAMPLE_RATE = 16_000


def endless_model(directory: Path) -> Path:
    """A tiny directory whose answers run to max_tokens: EOS is never taken."""
    config = SpeechLLMConfig.tiny()
    llama = dataclasses.replace(config.llama, suppress_token_ids=(0, config.llama.eos_token_id))
    make_tiny(directory, dataclasses.replace(config, llama=llama))
    return directory


def make_requests(count: int, tokens: int, seed: int) -> list[GenerateRequest]:
    """`count` requests with clips and instructions that no other seed has."""
    noise = np.random.default_rng(seed)
    requests = []
    for index in range(count):
        seconds = 2 + 4 * index / max(count - 1, 1)
        wave = 0.1 * noise.standard_normal(int(seconds * SAMPLE_RATE), dtype=np.float32)
        prompt = f"Question {index} of round {seed}: what does the speaker say about topic {index * 7}?"
        key = hashlib.sha256(wave.tobytes()).digest()
        requests.append(GenerateRequest(f"{seed}-{index}", prompt, wave, key, SamplingParams(tokens)))
    return requests


def again(requests: list[GenerateRequest], round_name: str) -> list[GenerateRequest]:
    """The same questions about the same clips under new ids."""
    return [dataclasses.replace(r, request_id=f"{round_name}-{r.request_id}") for r in requests]


async def answer(engine: EngineProcess, request: GenerateRequest) -> int:
    """Run one request to its end; the number of its tokens."""
    async with contextlib.aclosing(engine.generate(request)) as events:  # type: ignore[type-var]
        async for event in events:
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                return event.usage.completion_tokens
    raise RuntimeError("no last event")


async def in_turn(engine: EngineProcess, requests: list[GenerateRequest]) -> float:
    """Seconds for one after another."""
    begin = time.perf_counter()
    for request in requests:
        await answer(engine, request)
    return time.perf_counter() - begin


async def together(engine: EngineProcess, requests: list[GenerateRequest]) -> float:
    """Seconds for all at once."""
    begin = time.perf_counter()
    await asyncio.gather(*(answer(engine, request) for request in requests))
    return time.perf_counter() - begin


async def shared_clip_passes(engine: EngineProcess, tokens: int) -> int:
    """Encoder passes (each branch counts one) for 8 instructions about one new clip, all at once."""
    first, *_ = make_requests(1, tokens, seed=99)
    requests = [dataclasses.replace(first, request_id=f"shared-{i}", prompt=f"Ask {i}.") for i in range(8)]
    engine.take_encoder_runs()
    await together(engine, requests)
    return len(engine.take_encoder_runs()) // 2


async def measure(model: Path, count: int, tokens: int) -> dict[str, float]:
    """All arms on one engine."""
    engine = EngineProcess(EngineConfig(model, max_batch_size=max(32, count), encoder_cache_mb=1024))
    await engine.start()
    try:
        first, second = make_requests(count, tokens, seed=1), make_requests(count, tokens, seed=2)
        row = {
            "cold_in_turn_s": await in_turn(engine, first),
            "cold_together_s": await together(engine, second),
            "warm_in_turn_s": await in_turn(engine, again(second, "a")),
            "warm_together_s": await together(engine, again(first, "b")),
            "encoder_passes_for_8_questions": await shared_clip_passes(engine, tokens),
        }
    finally:
        await engine.stop()
    row["cold_ratio"] = row["cold_together_s"] / row["cold_in_turn_s"]
    row["warm_ratio"] = row["warm_together_s"] / row["warm_in_turn_s"]
    return row


def report(row: dict[str, float]) -> str:
    """The figures as a Markdown table."""
    lines = ["| figure | value |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {value:.3f} |" for name, value in row.items()])


def main() -> None:
    """Parse the command line, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--output", type=Path, help="append the JSON line to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or endless_model(Path(folder) / "model")
        row = asyncio.run(measure(model, options.requests, options.tokens))
    setup = {
        "requests": options.requests,
        "tokens": options.tokens,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
    }
    line = json.dumps(setup | row)
    if options.output:
        with options.output.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    print(report(row))  # noqa: T201 a command's output
    print(line)  # noqa: T201 a command's output


if __name__ == "__main__":
    main()
