"""The LLaMA-2 decoder over a flat batch of tokens, with paged KV and a LoRA scale per token.

Weights keep Meta's layout (rotary pairs interleaved), as the published checkpoint does, so the adapter's
scale reaches q, k, v and o in one channel order and nothing is permuted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import LlamaConfig, LoraConfig
from model.kv_cache import KVCache
from model.lora import LoraLinear
from model.prepacked import pack_linears

Rotary = tuple[Tensor, Tensor]
"""cos and sin of each token's position, [N, 1, d / 2] each."""


@dataclass(frozen=True, slots=True)
class PrefillSpan:
    """Rows start:stop of the flat batch are consecutive tokens of one sequence.

    pages: [P] int64, its block table. context: its tokens in the cache once these rows are written.
    """

    start: int
    stop: int
    pages: Tensor
    context: int


@dataclass(frozen=True, slots=True)
class DecodeRows:
    """Rows start: of the flat batch are one token each of B sequences.

    pages: [B, P] int64 block tables, padded with pages of the same row. contexts: [B] int64.
    """

    start: int
    pages: Tensor
    contexts: Tensor


@dataclass(frozen=True, slots=True)
class FlatBatch:
    """Tokens of many sequences end to end: prefill chunks first, then the decoding rows.

    embeddings: [N, D]. positions: [N] int64, from 0. slots: [N] int64 cache slots.
    scale: [N, D], zero rows switch the LoRA off; None switches it off for all.
    """

    embeddings: Tensor
    positions: Tensor
    slots: Tensor
    scale: Tensor | None
    prefills: tuple[PrefillSpan, ...]
    decodes: DecodeRows | None


class Attend(Protocol):
    """How the tokens of one forward see each other. Serving reads paged KV; training masks a dense batch."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Query, key (both rotated) and value [N, H, d] of one layer -> [N, H, d]."""
        ...


@dataclass(frozen=True)
class PagedAttention:
    """Attend of serving: writes keys and values of all N tokens first, then reads each sequence's pages.

    in_place: how decoding rows read pages where they lie (query [B, H, d], keys and values [pages, page size,
    H, d], tables [B, P], contexts [B] -> [B, H, d]); None gathers them.
    """

    batch: FlatBatch
    cache: KVCache
    in_place: Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor] | None = None

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """[N, H, d] each -> [N, H, d]."""
        self.cache.write(layer, self.batch.slots, key, value)
        return self.read(layer, query)

    def read(self, layer: int, query: Tensor) -> Tensor:
        """[N, H, d] -> [N, H, d], once the keys and values of these tokens are in the cache."""
        parts = [self._prefill(layer, query, span) for span in self.batch.prefills]
        rows = self.batch.decodes
        if rows is not None and self.in_place is not None:
            keys, values = self.cache.keys[layer], self.cache.values[layer]
            parts.append(self.in_place(query[rows.start :], keys, values, rows.pages, rows.contexts))
        elif rows is not None:
            parts.append(self._decode(layer, query, rows))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _prefill(self, layer: int, query: Tensor, span: PrefillSpan) -> Tensor:
        """One sequence's chunk against all its tokens so far. Returns [n, H, d]."""
        rows = span.stop - span.start
        key, value = (t[: span.context].transpose(0, 1) for t in self.cache.read(layer, span.pages))
        if rows == span.context:
            mask = None
        else:
            mask = torch.ones(rows, span.context, dtype=torch.bool, device=query.device)
            mask = mask.tril(span.context - rows)
        chunk = query[span.start : span.stop].transpose(0, 1)
        # With a dimension for the batch, or torch's fused attention on a CPU would not take it.
        out = F.scaled_dot_product_attention(
            chunk[None], key[None], value[None], attn_mask=mask, is_causal=mask is None
        )
        return out[0].transpose(0, 1)

    def _decode(self, layer: int, query: Tensor, rows: DecodeRows) -> Tensor:
        """One query a sequence, contexts padded to the longest and masked. Returns [B, H, d]."""
        key, value = (t.transpose(1, 2) for t in self.cache.read(layer, rows.pages))
        one = query[rows.start :, :, None]
        return F.scaled_dot_product_attention(one, key, value, attn_mask=self._decode_mask)[:, :, 0]

    @cached_property
    def _decode_mask(self) -> Tensor:
        """[B, 1, 1, S], added to scores; the same for all layers."""
        rows = self.batch.decodes
        assert rows is not None
        contexts = rows.contexts[:, None]
        tokens = torch.arange(rows.pages.shape[1] * self.cache.page_size, device=contexts.device)
        mask = torch.zeros_like(tokens, dtype=self.batch.embeddings.dtype).expand(len(contexts), -1)
        return mask.masked_fill(tokens >= contexts, float("-inf"))[:, None, None]


class Attention(nn.Module):
    """Multi-head attention with rotary positions; `Attend` says which tokens see which."""

    def __init__(self, config: LlamaConfig, lora: LoraConfig, layer: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.layer = layer
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.qkv = LoraLinear(size, size, lora.r, groups=3)
        self.o = LoraLinear(size, size, lora.r)

    def forward(self, x: Tensor, rotary: Rotary, scale: Tensor | None, attend: Attend) -> Tensor:
        """[N, D] -> [N, D]."""
        qkv = self.qkv(x, scale).unflatten(-1, (self.heads, self.head_dim))
        query, key = rotate(qkv[:, :2].flatten(1, 2), rotary).chunk(2, dim=1)
        attended = attend(self.layer, query, key, qkv[:, 2])
        out: Tensor = self.o(attended.flatten(1), scale)[:, 0]
        return out


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), gate and up side by side in one weight."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, D] -> [N, D]."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class Block(nn.Module):
    """One decoder layer, normalised before each half."""

    def __init__(self, config: LlamaConfig, lora: LoraConfig, layer: int) -> None:
        super().__init__()
        self.attention = Attention(config, lora, layer)
        self.feed_forward = FeedForward(config)
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.feed_forward_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, rotary: Rotary, scale: Tensor | None, attend: Attend) -> Tensor:
        """[N, D] -> [N, D]."""
        x = x + self.attention(self.attention_norm(x), rotary, scale, attend)
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out


class Llama(nn.Module):
    """Embedding, decoder layers, final norm and output head."""

    def __init__(self, config: LlamaConfig, lora: LoraConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, lora, i) for i in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self._rotary: tuple[Tensor, Tensor] | None = None

    def forward(self, batch: FlatBatch, cache: KVCache) -> Tensor:
        """Hidden states [N, D] before the final norm (the prompt adapter reads them there)."""
        return self.run(batch.embeddings, batch.positions, batch.scale, PagedAttention(batch, cache))

    def run(self, x: Tensor, positions: Tensor, scale: Tensor | None, attend: Attend) -> Tensor:
        """Embeddings x [N, D] at `positions` [N] -> hidden states [N, D] before the final norm.

        scale: [N, D] as in FlatBatch, or None.
        """
        cos, sin = self.rotary_table(x)
        rotary = cos[positions][:, None], sin[positions][:, None]
        for layer in self.layers:
            x = layer(x, rotary, scale, attend)
        return x

    @property
    def blocks(self) -> list[Block]:
        """The decoder layers, typed."""
        return [layer for layer in self.layers if isinstance(layer, Block)]

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, D] before the final norm -> [R, V]."""
        out: Tensor = self.lm_head(self.norm(hidden))
        return out

    def merge(self, scale: Tensor) -> None:
        """Fold the LoRA at one instruction's scale [D] into all projections, in place."""
        for layer in self.blocks:
            layer.attention.qkv.merge(scale)
            layer.attention.o.merge(scale)

    def prepack(self, max_bytes: float) -> float:
        """Have weights in oneDNN's order too, as far as `max_bytes` go; returns what is left of them."""
        for layer in self.blocks:
            max_bytes = layer.attention.qkv.prepack(max_bytes)
            max_bytes = layer.attention.o.prepack(max_bytes)
        return pack_linears(self, max_bytes)

    def rotary_table(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [positions, d / 2], float64 for a float64 model, else float32; made at first use."""
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        made = self._rotary
        if made is None or (made[0].device, made[0].dtype) != (like.device, dtype):
            made = self._rotary = rotary_table(self.config, like.device, dtype)
        return made


def rotary_table(config: LlamaConfig, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """cos and sin [max positions, d / 2] as `dtype`; the angles are float32 products, as published."""
    half = torch.arange(0, config.head_dim, 2, device=device).float()
    frequencies = 1.0 / (config.rope_theta ** (half / config.head_dim))
    angles = torch.outer(torch.arange(config.max_position_embeddings, device=device).float(), frequencies)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate neighbouring channel pairs of x [N, H, d] by their positions' angles: complex products."""
    cos, sin = rotary
    pairs = torch.view_as_complex(x.to(cos.dtype).reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * torch.complex(cos, sin)).flatten(-2).to(x.dtype)
