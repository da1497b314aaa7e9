"""The prompt adapter against a plain numpy computation of the published formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from model.config import PromptAdapterConfig
from model.prompt import adapter_ids
from model.prompt_adapter import PromptAdapter
from model.speech_llm import SpeechLLM
from model.tokenizer import Tokenizer
from tests.model.random_weights import randomize

HIDDEN = 16
erf = np.vectorize(math.erf)


def build(seed: int, gain: float = 1.0) -> PromptAdapter:
    adapter = PromptAdapter(HIDDEN, PromptAdapterConfig(12)).double().requires_grad_(False)
    randomize(adapter, seed)
    adapter.fc2.weight *= gain
    return adapter


def plain(adapter: PromptAdapter, hidden: np.ndarray) -> np.ndarray:
    """z = fc2(GELU(fc1(h))); a = softmax over tokens of w z; s = clamp(relu(sum a z), max 3)."""
    weights = {name: p.numpy() for name, p in adapter.named_parameters()}
    z = hidden @ weights["fc1.weight"].T + weights["fc1.bias"]
    z = 0.5 * z * (1 + erf(z / math.sqrt(2)))
    z = z @ weights["fc2.weight"].T + weights["fc2.bias"]
    score = z @ weights["attention.weight"][0] + weights["attention.bias"]
    share = np.exp(score - score.max())
    pooled = (share[:, None] * z).sum(axis=0) / share.sum()
    return np.minimum(np.maximum(pooled, 0.0), 3.0)


@pytest.mark.parametrize("num_tokens", [1, 2, 9, 100])
@pytest.mark.parametrize("gain", [1.0, 20.0])
def test_the_scale_is_that_of_the_formula(num_tokens: int, gain: float) -> None:
    adapter = build(num_tokens, gain)
    hidden = 2 * torch.randn(num_tokens, HIDDEN).double()
    scale = adapter(hidden).numpy()
    assert np.allclose(scale, plain(adapter, hidden.numpy()), rtol=0, atol=1e-12)
    assert scale.shape == (HIDDEN,)
    assert (scale >= 0).all()
    assert (scale <= 3).all()
    assert gain == 1.0 or (scale == 3.0).any()
    assert (scale == 0.0).any()


def test_the_order_of_tokens_matters_only_to_the_language_model() -> None:
    adapter, hidden = build(1), torch.randn(8, HIDDEN).double()
    assert torch.allclose(adapter(hidden), adapter(hidden.flip(0)), rtol=0, atol=1e-12)


def test_an_empty_instruction_has_a_scale(exact: SpeechLLM, tokenizer: Tokenizer) -> None:
    ids = adapter_ids(tokenizer, "")
    assert ids
    scale = exact.prompt_scale(ids)
    assert scale.shape == (exact.config.llama.hidden_size,)
    assert scale.isfinite().all()
    assert not torch.equal(scale, exact.prompt_scale(adapter_ids(tokenizer, " ")))


def test_the_scale_of_an_instruction_leaves_no_trace(exact: SpeechLLM, tokenizer: Tokenizer) -> None:
    ids = adapter_ids(tokenizer, "What was said?")
    first = exact.prompt_scale(ids)
    exact.prompt_scale(adapter_ids(tokenizer, "Something else altogether, and longer."))
    assert torch.equal(exact.prompt_scale(ids), first)
