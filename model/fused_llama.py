"""The decoder's forward for CUDA: the same numbers as `Llama.run`, in about a dozen kernels a layer.

A decode step of one sequence reads every weight once: it is as fast as memory, if little else is done.
Eager torch launches some forty kernels a layer; here W and the LoRA's A are one product, the rest are the
kernels of `model.triton_ops`, and a lone row goes through matrix-vector products that carry norm, SwiGLU and
residual along. Sums are float32 and rounded to the model's dtype less often than eager torch rounds.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from model.kv_cache import KVCache
from model.llama import Block, FlatBatch, Llama, PagedAttention

Read = Callable[[int, Tensor], Tensor]
"""Attention of one layer's queries [N, H, d] over the cache -> [N, H, d]."""
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one layer as the kernels take them: W over A transposed, and B apart."""

    qkv: Tensor
    qkv_b: Tensor
    o: Tensor
    o_b: Tensor
    gate_up: Tensor
    down: Tensor
    attention_norm: Tensor
    feed_forward_norm: Tensor
    epsilon: float

    @classmethod
    def of(cls, block: Block) -> _Layer:
        attention, feed_forward = block.attention, block.feed_forward
        b = []
        for linear in (attention.qkv, attention.o):
            nothing = linear.weight.data.new_empty(linear.groups, 0, linear.out_features)
            b.append(nothing if linear.merged else linear.lora_B.data)
        return cls(
            attention.qkv.stacked(),
            b[0],
            attention.o.stacked(),
            b[1][0],
            feed_forward.gate_up.weight.data,
            feed_forward.down.weight.data,
            block.attention_norm.weight.data,
            block.feed_forward_norm.weight.data,
            float(block.attention_norm.eps or 0.0),
        )


class FusedLlama:
    """Wraps a decoder whose weights are loaded, and merged if they are to be. Shares all of them."""

    def __init__(self, llama: Llama) -> None:
        from model import triton_ops  # not where there is no Triton

        self._ops: Any = triton_ops
        self._llama = llama
        self.config = llama.config
        self._layers = [_Layer.of(block) for block in llama.blocks]

    @staticmethod
    def supports(llama: Llama) -> bool:
        """Whether the kernels can be had (Triton needs a C compiler) and can tile these sizes and dtype."""
        config, weight = llama.config, llama.norm.weight
        head = config.head_dim
        fits = head >= 32 and head & (head - 1) == 0 and config.hidden_size % 128 == 0
        compiler = shutil.which("gcc") or shutil.which("clang")
        found = compiler is not None and importlib.util.find_spec("triton") is not None
        return fits and found and weight.dtype in DTYPES

    def forward(self, batch: FlatBatch, cache: KVCache) -> Tensor:
        """As `Llama.forward`: hidden states [N, D] before the final norm. The batch must carry a scale."""
        assert batch.scale is not None, "a batch without scales"
        attention = PagedAttention(batch, cache, self._ops.paged_attention)
        return self.run(batch.embeddings, batch.positions, batch.slots, batch.scale, cache, attention.read)

    def decode(self, ids: Tensor, positions: Tensor, tables: Tensor, scale: Tensor, cache: KVCache) -> Tensor:
        """One token of each of B sequences -> hidden states [B, D]. Nothing depends on values on the host.

        ids, positions: [B]. tables: [B, P]. scale: [B, D]. The token is written at its position.
        """
        size = cache.page_size
        page = tables.gather(1, (positions // size)[:, None].long())[:, 0]
        slots = page * size + positions % size
        contexts = positions + 1

        def read(layer: int, query: Tensor) -> Tensor:
            attended: Tensor = self._ops.paged_attention(
                query, cache.keys[layer], cache.values[layer], tables, contexts
            )
            return attended

        return self.run(self._llama.embed_tokens(ids), positions, slots, scale, cache, read)

    def run(
        self, x: Tensor, positions: Tensor, slots: Tensor, scale: Tensor, cache: KVCache, read: Read
    ) -> Tensor:
        """Embeddings x [N, D] -> hidden states [N, D]. positions, slots: [N]. scale: [N, D]."""
        rotary = self._llama.rotary_table(x)
        step = self._one_row if len(x) == 1 else self._rows
        for index, layer in enumerate(self._layers):

            def attend(projected: Tensor, index: int = index, layer: _Layer = layer) -> Tensor:
                query = self._ops.write_qkv(
                    projected, layer.qkv_b, scale, rotary, positions, slots,
                    cache.keys[index], cache.values[index],
                )  # fmt: skip
                return read(index, query).flatten(1)

            x = step(x, scale, layer, attend)
        return x

    def _one_row(self, x: Tensor, scale: Tensor, layer: _Layer, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """[1, D] -> [1, D]."""
        ops, epsilon = self._ops, layer.epsilon
        attended = attend(ops.gemv(x, layer.qkv, norm=layer.attention_norm, epsilon=epsilon))
        x = ops.add_lora(x, ops.gemv(attended, layer.o), layer.o_b, scale)
        wide = ops.gemv(x, layer.gate_up, norm=layer.feed_forward_norm, epsilon=epsilon, swiglu=True)
        out: Tensor = ops.gemv(wide, layer.down, residual=x)
        return out

    def _rows(self, x: Tensor, scale: Tensor, layer: _Layer, attend: Callable[[Tensor], Tensor]) -> Tensor:
        """[N, D] -> [N, D]."""
        ops, epsilon = self._ops, layer.epsilon
        attended = attend(F.linear(ops.norm(x, layer.attention_norm, epsilon), layer.qkv))
        x = ops.add_lora(x, F.linear(attended, layer.o), layer.o_b, scale)
        wide = ops.swiglu(F.linear(ops.norm(x, layer.feed_forward_norm, epsilon), layer.gate_up))
        return x + F.linear(wide, layer.down)

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, D] before the final norm -> [R, V]."""
        llama = self._llama
        weight, epsilon = llama.norm.weight.data, float(llama.norm.eps or 0.0)
        if len(hidden) == 1:
            one: Tensor = self._ops.gemv(hidden, llama.lm_head.weight.data, norm=weight, epsilon=epsilon)
            return one
        return F.linear(self._ops.norm(hidden, weight, epsilon), llama.lm_head.weight.data)
