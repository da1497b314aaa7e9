"""The slow, obvious way to answer: one request, no pages, no cache, everything computed anew at each step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.llama import FlatBatch, PrefillSpan
from model.prompt import build_prompt
from model.sampling import SamplingRow, sample
from model.speech_llm import SpeechLLM
from model.tokenizer import Tokenizer
from server.types import SamplingParams


@dataclass(frozen=True)
class Answer:
    """ids without EOS, and the logits [V] that each step (EOS included) chose from."""

    ids: tuple[int, ...]
    logits: tuple[Tensor, ...]


def answer_alone(
    model: SpeechLLM, tokenizer: Tokenizer, waveform: Tensor | None, prompt: str, sampling: SamplingParams
) -> Answer:
    """waveform: [T] float32 at 16 kHz, or None for a question without audio."""
    config = model.config.llama
    parts = build_prompt(tokenizer, config.bos_token_id, prompt, None, waveform is not None)
    pieces = [model.embed_tokens(torch.tensor(parts.left_ids))]
    scale = torch.zeros(config.hidden_size, dtype=model.dtype)
    if waveform is not None:
        pieces.append(model.encode_audio([waveform])[0])
        pieces.append(model.embed_tokens(torch.tensor(parts.right_ids)))
        scale = model.prompt_scale(parts.adapter_ids)
    prefix = torch.cat(pieces)
    ids: list[int] = []
    steps: list[Tensor] = []
    while len(ids) < sampling.max_tokens:
        tokens = model.embed_tokens(torch.tensor(ids, dtype=torch.long))
        logits = next_logits(model, torch.cat([prefix, tokens]), scale)
        steps.append(logits.clone())
        banned = config.suppress_token_ids + (() if ids else (config.eos_token_id,))
        row = SamplingRow(
            sampling.temperature, sampling.top_k, sampling.top_p, sampling.seed or 0, len(ids), banned
        )
        token = sample(logits[None], [row])[0]
        if token == config.eos_token_id:
            break
        ids.append(token)
    return Answer(tuple(ids), tuple(steps))


def next_logits(model: SpeechLLM, embeddings: Tensor, scale: Tensor) -> Tensor:
    """[n, D] embeddings of one sequence, its scale [D] -> logits [V] of the token after the last."""
    n = len(embeddings)
    positions = torch.arange(n)
    span = PrefillSpan(0, n, torch.zeros(1, dtype=torch.long), n)
    batch = FlatBatch(embeddings, positions, positions, scale.expand(n, -1), (span,), None)
    hidden = model(batch, model.new_cache(num_pages=1, page_size=n))
    return model.logits(hidden[-1:])[0]
