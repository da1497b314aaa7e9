"""The language model alone beside other decoders: prompts, pipes, agreement, pins. No peer is needed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from benchmarks.concurrency import endless_model
from benchmarks.decoders import environments
from benchmarks.decoders.decoders import Decoded, PipedDecoder, timed
from benchmarks.decoders.prompts import PromptMaker, Shape, TextPrompt
from benchmarks.decoders.workloads import agreement, check, common, judge
from model.config import SpeechLLMConfig
from model.prompt import build_prompt
from model.tokenizer import Tokenizer
from server.bench.types import BenchError
from tests.locks import pins

SHAPE = Shape(prompt_tokens=80, answer_tokens=4, batches=(1, 3))
PROMPTS = [TextPrompt("a", "b", (1, 5, 6)), TextPrompt("c", "d", (1, 7))]
BLOCK_TOKENS = 16
"""The least that any of them would share between prompts."""
BACKWARDS = """
from benchmarks.decoders.piped import own_stdout, serve
pipe = own_stdout()
print("noise that is not for the parent")
serve(lambda prompts, n: [ids[::-1] + [n] for ids in prompts], pipe, {"it": "1.0"})
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_model(tmp_path_factory.mktemp("decoders") / "model")


def test_prompts_have_their_length_and_are_what_the_engine_makes_of_the_text(model: Path) -> None:
    bos_id = SpeechLLMConfig.load(model).llama.bos_token_id
    tokenizer = Tokenizer(model / "tokenizer.model")
    make = PromptMaker(model, SHAPE, 1)
    prompts = make.batch(4) + make.batch(4)
    for prompt in prompts:
        made = build_prompt(tokenizer, bos_id, prompt.instruction, prompt.system, audio=False)
        assert prompt.ids == made.left_ids
        assert len(prompt.ids) == 80
    assert len({prompt.ids for prompt in prompts}) == 8


def test_prompts_differ_before_a_block_is_full(model: Path) -> None:
    """Two prompts may begin with the same word; all of them must not."""
    prompts = PromptMaker(model, SHAPE, 1).batch(8)
    assert len({prompt.ids[: 2 * BLOCK_TOKENS] for prompt in prompts}) == 8


def piped(code: str) -> PipedDecoder:
    return PipedDecoder([sys.executable, "-c", code], environments.computing())


async def test_a_piped_decoder_answers_in_order_whatever_else_it_prints() -> None:
    with piped(BACKWARDS) as decoder:
        await decoder.ready()
        first = await decoder.decode(PROMPTS, 9)
        second = await decoder.decode(PROMPTS[:1], 8)
    assert decoder.versions == {"it": "1.0"}
    assert first.answers == [[6, 5, 1, 9], [7, 1, 9]]
    assert second.answers == [[6, 5, 1, 8]]
    assert first.seconds > 0


async def test_a_child_that_dies_is_an_error_with_its_last_words() -> None:
    with piped("raise SystemExit('out of luck')") as dead, pytest.raises(BenchError, match="out of luck"):
        await dead.ready()
    with piped(BACKWARDS.replace("ids[::-1]", "ids['x']")) as dying:
        await dying.ready()
        with pytest.raises(BenchError, match="TypeError"):
            await dying.decode(PROMPTS, 1)


async def test_rates_count_the_answers_tokens() -> None:
    async def answer(seconds: float, ids: list[int]) -> list[int]:
        await asyncio.sleep(seconds)
        return ids

    decoded = await timed([answer(0.05, [1, 2]), answer(0.0, [3, 4])])
    assert decoded.answers == [[1, 2], [3, 4]]
    assert 0.05 <= decoded.seconds < 5
    assert Decoded(0.5, [[1, 2], [3, 4]]).tokens_per_s == 8


def test_agreement_ends_an_answer_at_its_first_difference() -> None:
    ours = [Decoded(1, [[1, 2, 3], [4, 5, 6]]), Decoded(1, [[7, 8, 9]])]
    theirs = [Decoded(1, [[1, 2, 3], [4, 0, 6]]), Decoded(1, [[0, 8, 9]])]
    counts = agreement(ours, theirs)
    assert counts == {"compared": 3, "equal": 1, "tokens": 9, "tokens_agreed": 4}
    assert common([1], [1]) == 1
    with pytest.raises(BenchError, match="vllm, batch 1: does not compute what ours does"):
        judge("vllm, batch 1", counts)
    judge("vllm, batch 1", counts | {"tokens_agreed": 5})


@pytest.mark.parametrize("answers", [[[1, 2]], [[1, 2], [3]], [[1, 2], [3, 4], [5, 6]]])
def test_answers_that_are_not_whole_end_the_run(answers: list[list[int]]) -> None:
    check(Decoded(1, [[1, 2], [3, 4]]), 2, 2)
    with pytest.raises(BenchError, match="not 2 of 2"):
        check(Decoded(1, answers), 2, 2)


def test_an_environment_that_is_not_there_names_its_command() -> None:
    with pytest.raises(BenchError, match="make bench-env"):
        environments.python_of(environments.ENVIRONMENTS / "nobody")


def test_the_peers_environments_are_pinned_and_without_what_they_do_not_need() -> None:
    for name in ("llamacpp", "vllm"):
        theirs = pins(f"requirements-bench-{name}.lock")
        assert not theirs.keys() & {"torchvision", "torchaudio", "torchcodec", "triton"}
        assert theirs.get("torch") in (None, pins("requirements.lock")["torch"])
