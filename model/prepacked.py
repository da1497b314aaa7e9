"""Weights of linear layers laid out once more for oneDNN, which multiplies few rows faster than BLAS.

Only on a CPU and in float32. The plain weights stay: a single thread multiplies one row faster through them
(several do not share that product among them), and everything that reads, merges or writes weights does so
there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 2**18
"""Numbers in a weight. To plan a product takes oneDNN 0.4 to 1 ms for every number of rows, with what follows
it up to 1.6 ms: where rows come in all numbers, small ones do not earn it back."""
TYPICAL_ROWS = 32
"""oneDNN picks a layout for a number of rows; this one serves from 1 row to hundreds. More are those of a
prompt, of which each has its own number."""


def product(
    x: Tensor, weight: Tensor, packed: Tensor | None, bias: Tensor | None = None, *, gelu: bool = False
) -> Tensor:
    """[..., in] -> [..., out] by weight [out, in]. packed: what `pack` made of it, or None for none.

    gelu: of the output, which oneDNN makes as it writes its sums.
    """
    if packed is None or (x.numel() == x.shape[-1] and torch.get_num_threads() == 1):
        plain = F.linear(x, weight, bias)
        return gelu_planless(plain) if gelu else plain
    activation = "gelu" if gelu else "none"
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], "none")
    return out


def gelu_of(layer: nn.Linear, x: Tensor) -> Tensor:
    """GELU of what the layer makes of x, [..., in] -> [..., out]."""
    if isinstance(layer, PackedLinear) and layer.weight.numel() >= LARGE:
        return product(x, layer.weight, layer.packed, layer.bias, gelu=True)
    return gelu_planless(layer(x))


def gelu_planless(x: Tensor) -> Tensor:
    """GELU in place, without a plan for its shape where that takes longer (0.15 ms) than GELU itself.

    torch gives oneDNN only what is contiguous; its own loop makes no difference between rows and columns.
    """
    few = x.numel() < LARGE and x.device.type == "cpu" and x.dim() > 1
    torch.ops.aten.gelu_(x.mT if few else x)
    return x


def sum_with(added: Tensor, layer: nn.Linear, x: Tensor) -> Tensor:
    """added [..., out] + what the layer makes of x [..., in]; oneDNN adds as it writes its sums."""
    if isinstance(layer, PackedLinear) and layer.weight.numel() >= LARGE:
        of_all: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, added, layer.packed, layer.bias, "add")
        return of_all
    out: Tensor = added + layer(x)
    return out


def pack(weight: Tensor) -> Tensor:
    """[out, in] -> the same numbers in oneDNN's order. Only where `can_pack`."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS)
    return packed


def can_pack(weight: Tensor) -> bool:
    """Whether this build of torch has oneDNN, and the weight is one that it is faster for."""
    has_onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    return has_onednn and weight.device.type == "cpu" and weight.dtype == torch.float32


class PackedLinear(nn.Linear):
    """A linear layer that holds its weight as packed too. Its parameters are those of the original."""

    packed: Tensor

    @classmethod
    def of(cls, layer: nn.Linear) -> PackedLinear:
        """The same layer. Its weight must not change any more."""
        made = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        made.weight, made.bias = layer.weight, layer.bias
        made.packed = pack(layer.weight)
        return made

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] -> [..., out]."""
        return product(input, self.weight, self.packed, self.bias)


@dataclass(frozen=True, slots=True)
class Weight:
    """plain: [out, in]. packed: what `pack` made of it, or None for none."""

    plain: Tensor
    packed: Tensor | None = None

    @classmethod
    def of(cls, layer: nn.Linear) -> Weight:
        """That of a layer without bias."""
        return cls(layer.weight.data, layer.packed if isinstance(layer, PackedLinear) else None)

    def times(self, x: Tensor) -> Tensor:
        """[n, in] -> [n, out]."""
        is_planned = len(x) <= TYPICAL_ROWS or self.plain.numel() >= LARGE
        return product(x, self.plain, self.packed if is_planned else None)


def pack_linears(module: nn.Module, max_bytes: float, min_size: int = 0) -> float:
    """Make the linear layers inside `module` packed ones while `max_bytes` last; returns what is left.

    min_size: of the weights, in numbers.
    """
    for parent in list(module.modules()):
        children: list[tuple[str, Any]] = list(parent.named_children())
        for name, child in children:
            if type(child) is not nn.Linear or child.weight.numel() < min_size:
                continue
            if can_pack(child.weight) and child.weight.nbytes <= max_bytes:
                max_bytes -= child.weight.nbytes
                setattr(parent, name, PackedLinear.of(child))
    return max_bytes
