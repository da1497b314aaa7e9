"""The decoder's forward as it is served: the same numbers as `Llama.run`, in about a dozen kernels a layer.

A decode step of one sequence reads every weight once: it is as fast as memory, if little else is done.
Eager torch makes some forty calls a layer; here W and the LoRA's A are one product, and the rest are the
kernels of `model.triton_ops` on a GPU, of `model.numba_ops` on a CPU, where a step of a few sequences is one
call altogether (`model.decode_step`). On a GPU a lone row goes through matrix-vector products that carry
norm, SwiGLU and residual along, and sums are float32, rounded to the model's dtype less often than eager
torch rounds.
"""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from model.kv_cache import KVCache
from model.llama import Block, FlatBatch, Llama, PagedAttention, Rotary
from model.prepacked import Weight

if TYPE_CHECKING:
    from model.decode_step import DecodeStep

logger = logging.getLogger(__name__)

Read = Callable[[int, Tensor], Tensor]
"""Attention of one layer's queries [N, H, d] over the cache -> [N, H, d]."""
Attend = Callable[[Tensor], Tensor]
"""One layer's x times W and A of q, k and v -> attention's output [N, D]."""
GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_ROWS = 12
"""Of a step on a CPU that is one compiled function; with more, oneDNN's products are faster."""
MOST_WIDE_ROWS = 4
"""The same where oneDNN has AVX-512 and weights are WIDE: the function's products are made for AVX2."""
WIDE = 512
"""Channels from which on a step is products, not calls."""
CPU_DTYPES = (torch.float32, torch.float64)


class Gemv(Protocol):
    """A product with one row, and what comes before and after it."""

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        *,
        norm: Tensor | None = None,
        epsilon: float = 0.0,
        residual: Tensor | None = None,
        swiglu: bool = False,
    ) -> Tensor:
        """x: [1, D]. weight: [out, D]. norm: [D], of an RMSNorm before. residual: [1, out], added.

        swiglu: weight is [2 out, D], gate over up.
        """


class Kernels(Protocol):
    """What one kind of device brings, as `model.triton_ops` and `model.numba_ops` describe it.

    gemv: None where the device does without.
    """

    @property
    def gemv(self) -> Gemv | None: ...

    def write_qkv(
        self,
        y: Tensor,
        b: Tensor,
        scale: Tensor,
        rotary: Rotary,
        positions: Tensor,
        slots: Tensor,
        keys: Tensor,
        values: Tensor,
    ) -> Tensor: ...

    def paged_attention(
        self, query: Tensor, keys: Tensor, values: Tensor, tables: Tensor, contexts: Tensor
    ) -> Tensor: ...

    def add_lora(self, x: Tensor, y: Tensor, b: Tensor, scale: Tensor) -> Tensor: ...

    def norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor: ...

    def swiglu(self, gate_up: Tensor) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class _Layer:
    """Weights of one layer as the kernels take them: W over A transposed, and B apart."""

    qkv: Weight
    qkv_b: Tensor
    o: Weight
    o_b: Tensor
    gate_up: Weight
    down: Weight
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
            attention.qkv.served(),
            b[0],
            attention.o.served(),
            b[1][0],
            Weight.of(feed_forward.gate_up),
            Weight.of(feed_forward.down),
            block.attention_norm.weight.data,
            block.feed_forward_norm.weight.data,
            float(block.attention_norm.eps or 0.0),
        )


def _runs(device: torch.device) -> bool:
    """Whether Triton runs a kernel on this GPU.

    It needs a C compiler, Python's headers, and a cache directory from which programs may be loaded.
    """
    try:
        from model import triton_ops

        triton_ops.norm(torch.ones(1, 128, device=device), torch.ones(128, device=device), 1e-6)
        torch.cuda.synchronize(device)
    except Exception as error:  # noqa: BLE001 whatever it lacks, plain torch needs none of it
        logger.warning("Triton runs no kernel here: %s: %s", type(error).__name__, error)
        return False
    return True


def most_rows(hidden_size: int) -> int:
    """Rows up to which a step of a decoder so wide is one compiled function on this CPU."""
    has_wide_products = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return MOST_WIDE_ROWS if has_wide_products and hidden_size >= WIDE else MOST_ROWS


class FusedLlama:
    """Wraps a decoder whose weights are loaded, and merged and packed if they are to be. Shares all of them.

    ops: the kernels; by the weights' device unless given.
    """

    def __init__(self, llama: Llama, ops: Kernels | None = None) -> None:
        self._ops = ops or _ops_for(llama.norm.weight.device)
        self._llama = llama
        self.config = llama.config
        self._layers = [_Layer.of(block) for block in llama.blocks]
        self._head = Weight.of(llama.lm_head)
        self._decode_step = None if self.is_for_graphs else _decode_step(self._layers)
        self._most_rows = most_rows(llama.config.hidden_size)

    @property
    def is_for_graphs(self) -> bool:
        """Whether `decode` can be captured: its kernels are a GPU's."""
        return self._ops.gemv is not None

    @staticmethod
    def supports(llama: Llama) -> bool:
        """Whether there are kernels for this device, these sizes, this dtype, and one of them runs."""
        config, weight = llama.config, llama.norm.weight
        if weight.device.type == "cpu":
            return weight.dtype in CPU_DTYPES
        head = config.head_dim
        fits = head >= 32 and head & (head - 1) == 0 and config.hidden_size % 128 == 0
        compiler = shutil.which("gcc") or shutil.which("clang")
        found = compiler is not None and importlib.util.find_spec("triton") is not None
        return fits and found and weight.dtype in GPU_DTYPES and _runs(weight.device)

    def forward(self, batch: FlatBatch, cache: KVCache) -> Tensor:
        """As `Llama.forward`: hidden states [N, D] before the final norm. The batch must carry a scale."""
        assert batch.scale is not None, "a batch without scales"
        if self._decode_step is not None and not batch.prefills and len(batch.positions) <= self._most_rows:
            return self._decode_step.run(batch, self._llama.rotary_table(batch.embeddings), cache)
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
            return self._ops.paged_attention(query, cache.keys[layer], cache.values[layer], tables, contexts)

        return self.run(self._llama.embed_tokens(ids), positions, slots, scale, cache, read)

    def run(
        self, x: Tensor, positions: Tensor, slots: Tensor, scale: Tensor, cache: KVCache, read: Read
    ) -> Tensor:
        """Embeddings x [N, D] -> hidden states [N, D]. positions, slots: [N]. scale: [N, D]."""
        rotary = self._llama.rotary_table(x)
        gemv = self._ops.gemv if len(x) == 1 else None
        for index, layer in enumerate(self._layers):

            def attend(projected: Tensor, index: int = index, layer: _Layer = layer) -> Tensor:
                query = self._ops.write_qkv(
                    projected, layer.qkv_b, scale, rotary, positions, slots,
                    cache.keys[index], cache.values[index],
                )  # fmt: skip
                return read(index, query).flatten(1)

            if gemv is not None:
                x = self._one_row(gemv, x, scale, layer, attend)
            else:
                x = self._rows(x, scale, layer, attend)
        return x

    def _one_row(self, gemv: Gemv, x: Tensor, scale: Tensor, layer: _Layer, attend: Attend) -> Tensor:
        """[1, D] -> [1, D]."""
        epsilon = layer.epsilon
        attended = attend(gemv(x, layer.qkv.plain, norm=layer.attention_norm, epsilon=epsilon))
        x = self._ops.add_lora(x, gemv(attended, layer.o.plain), layer.o_b, scale)
        wide = gemv(x, layer.gate_up.plain, norm=layer.feed_forward_norm, epsilon=epsilon, swiglu=True)
        return gemv(wide, layer.down.plain, residual=x)

    def _rows(self, x: Tensor, scale: Tensor, layer: _Layer, attend: Attend) -> Tensor:
        """[N, D] -> [N, D]."""
        ops, epsilon = self._ops, layer.epsilon
        attended = attend(layer.qkv.times(ops.norm(x, layer.attention_norm, epsilon)))
        x = ops.add_lora(x, layer.o.times(attended), layer.o_b, scale)
        wide = ops.swiglu(layer.gate_up.times(ops.norm(x, layer.feed_forward_norm, epsilon)))
        return layer.down.times(wide).add_(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """[R, D] before the final norm -> [R, V]."""
        llama = self._llama
        weight, epsilon = llama.norm.weight.data, float(llama.norm.eps or 0.0)
        if len(hidden) == 1 and self._ops.gemv is not None:
            return self._ops.gemv(hidden, self._head.plain, norm=weight, epsilon=epsilon)
        return self._head.times(self._ops.norm(hidden, weight, epsilon))


def _decode_step(layers: Sequence[_Layer]) -> DecodeStep:
    """Imported where it is used, as below."""
    from model.decode_step import DecodeStep

    weights = [
        (
            layer.qkv.plain, layer.qkv_b, layer.o.plain, layer.o_b, layer.gate_up.plain, layer.down.plain,
            layer.attention_norm, layer.feed_forward_norm,
        )
        for layer in layers
    ]  # fmt: skip
    return DecodeStep(weights, layers[0].epsilon)


def _ops_for(device: torch.device) -> Kernels:
    """Imported where they are used: neither Triton nor Numba's compiler is needed elsewhere."""
    if device.type == "cpu":
        from model.numba_ops import NumbaOps

        return NumbaOps()
    from model import triton_ops

    return triton_ops
