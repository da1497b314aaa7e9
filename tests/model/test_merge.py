"""A model merged for one instruction answers as the batched one does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint import load_model
from model.config import LoraConfig
from model.prompt import build_prompt
from model.speech_llm import SpeechLLM
from model.tiny import make_tiny
from model.tokenizer import Tokenizer
from tests.model.random_weights import noise_clip, small_config
from tests.model.reference import next_logits

CPU = torch.device("cpu")
INSTRUCTION = "What was said in the recording?"


def embeddings(model: SpeechLLM, tokenizer: Tokenizer, answer: str) -> Tensor:
    """[n, D] of a whole sequence: prompt, a clip, the first words of an answer."""
    prompt = build_prompt(tokenizer, 1, INSTRUCTION, None, audio=True)
    left, right = (torch.tensor(ids) for ids in (prompt.left_ids, prompt.right_ids))
    (audio,) = model.encode_audio([noise_clip(1.1)])
    tail = torch.tensor(tokenizer.encode(answer))
    return torch.cat([model.embed_tokens(left), audio, model.embed_tokens(right), model.embed_tokens(tail)])


def both(directory: Path, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [V] batched, merged, and without LoRA."""
    model, tokenizer = load_model(directory, CPU, dtype)
    scale = model.prompt_scale(build_prompt(tokenizer, 1, INSTRUCTION, None, True).adapter_ids)
    assert (scale > 0).any()
    whole = embeddings(model, tokenizer, "The quick brown fox")
    batched = next_logits(model, whole, scale)
    off = next_logits(model, whole, torch.zeros_like(scale))
    before = model.num_parameters
    model.merge(scale)
    assert model.num_parameters < before
    # Whatever scale the engine passes, a merged model has its own.
    merged = next_logits(model, whole, torch.zeros_like(scale))
    return batched, merged, off


# fp32: merging rounds each weight once, and random weights amplify rounding (the golden tolerance).
@pytest.mark.parametrize(("dtype", "atol"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
def test_merged_and_batched_agree_over_the_whole_model(
    directory: Path, dtype: torch.dtype, atol: float
) -> None:
    batched, merged, off = both(directory, dtype)
    assert torch.allclose(merged, batched, rtol=0, atol=atol)
    assert not torch.allclose(merged, off, rtol=0, atol=10 * atol)


@pytest.mark.parametrize("modules", [("q_proj", "v_proj"), ("o_proj",), ("k_proj", "o_proj", "q_proj")])
def test_with_lora_on_some_projections(tmp_path: Path, modules: tuple[str, ...]) -> None:
    make_tiny(tmp_path / "some", small_config(lora=LoraConfig(3, target_modules=modules)))
    batched, merged, off = both(tmp_path / "some", torch.float64)
    assert torch.allclose(merged, batched, rtol=0, atol=1e-9)
    assert not torch.allclose(merged, off, rtol=0, atol=1e-6)


def test_projections_without_lora_keep_their_weights(tmp_path: Path) -> None:
    make_tiny(tmp_path / "some", small_config(lora=LoraConfig(3, target_modules=("v_proj",))))
    model, _ = load_model(tmp_path / "some", CPU, torch.float32)
    attention = model.llama.blocks[0].attention
    before = attention.qkv.weight.clone(), attention.o.weight.clone()
    model.merge(torch.full((128,), 2.0))
    q, k, v = (attention.qkv.weight != before[0]).chunk(3)
    assert not q.any()
    assert not k.any()
    assert v.float().mean() > 0.9
    assert torch.equal(attention.o.weight, before[1])
