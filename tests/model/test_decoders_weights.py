"""The decoder's weights in the peers' formats: the same model, without its LoRA."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.concurrency import endless_model
from benchmarks.decoders.decoders import Decoded, timed
from benchmarks.decoders.prompts import PromptMaker, Shape, TextPrompt
from benchmarks.decoders.weights import derived, quiet_state, write_hf
from model.checkpoint_format import open_tensors
from model.config import SpeechLLMConfig
from server.engine.local import LocalEngine
from server.types import Delta, EngineConfig, GenerateRequest, SamplingParams

SHAPE = Shape(prompt_tokens=80, answer_tokens=12)
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return endless_model(tmp_path_factory.mktemp("decoders") / "model")


async def test_transformers_answers_the_written_weights_as_our_engine_answers_text(model: Path) -> None:
    prompts = PromptMaker(model, SHAPE, 1).batch(3)
    ours = (await engine_answers(model, prompts)).answers
    theirs = AutoModelForCausalLM.from_pretrained(derived(model, "hf", write_hf), dtype=torch.float32)
    answers = theirs.generate(
        torch.tensor([prompt.ids for prompt in prompts]),
        max_new_tokens=SHAPE.answer_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert answers[:, SHAPE.prompt_tokens :].tolist() == ours
    assert len({tuple(ids) for ids in ours}) == 3


async def engine_answers(model: Path, prompts: list[TextPrompt]) -> Decoded:
    engine = LocalEngine(EngineConfig(model, device="cpu"))
    await engine.start()

    async def answer(number: int, prompt: TextPrompt) -> list[int]:
        sampling = SamplingParams(SHAPE.answer_tokens)
        request = GenerateRequest(str(number), prompt.instruction, None, b"", sampling, system=prompt.system)
        events = [event async for event in engine.generate(request)]
        return [token for event in events if isinstance(event, Delta) for token in event.token_ids]

    decoded = await timed([answer(number, prompt) for number, prompt in enumerate(prompts)])
    await engine.stop()
    return decoded


def test_suppressed_tokens_alone_lose_their_output_rows(model: Path) -> None:
    suppressed = list(SpeechLLMConfig.load(model).llama.suppress_token_ids)
    head, ours = quiet_state(model)["lm_head.weight"], open_tensors(model).get("llama.lm_head.weight")
    kept = [token for token in range(len(ours)) if token not in suppressed]
    assert suppressed
    assert not head[suppressed].any()
    assert torch.equal(head[kept], ours[kept])
    assert ours[suppressed].any()


def test_a_folder_is_written_once(model: Path) -> None:
    written: list[Path] = []

    def write(source: Path, folder: Path) -> None:
        written.append(source)
        (folder / "it").touch()

    first, second = (derived(model, "once", write) for _ in range(2))
    assert first == second
    assert (first / "it").is_file()
    assert written == [model]


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "kind"), [("F32", torch.float32), ("F16", torch.float16)])
def test_gguf_holds_the_same_weights_in_metas_rotary_layout(
    model: Path, tmp_path: Path, dtype: str, kind: torch.dtype
) -> None:
    """Needs gguf (`make bench-env`)."""
    import gguf

    from benchmarks.decoders.gguf_file import gguf_path, write_gguf

    write_gguf(model, tmp_path)
    reader = gguf.GGUFReader(gguf_path(tmp_path, dtype))
    found = {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in reader.tensors}
    tensors = open_tensors(model)
    names = {
        "blk.0.attn_q.weight": "llama.layers.0.self_attn.q_proj.weight",
        "blk.1.attn_k.weight": "llama.layers.1.self_attn.k_proj.weight",
        "blk.1.ffn_down.weight": "llama.layers.1.mlp.down_proj.weight",
        "token_embd.weight": "llama.embed_tokens.weight",
    }
    for theirs, ours in names.items():
        assert torch.equal(found[theirs], tensors.get(ours).to(kind))
    assert found["output_norm.weight"].dtype == torch.float32
    config = SpeechLLMConfig.load(model).llama
    assert len(found) == 3 + 9 * config.num_hidden_layers
    assert reader.fields["llama.attention.head_count"].contents() == config.num_attention_heads
    pieces = reader.fields["tokenizer.ggml.tokens"].contents()
    assert len(pieces) == config.vocab_size
    assert pieces[:3] == ["<unk>", "<s>", "</s>"]
