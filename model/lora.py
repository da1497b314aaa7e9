"""LoRA whose strength is set per row and per output channel: y = xW + ((xA)B) * s (paper, section 3.2).

A and B are shared by all requests, only s differs, so a batch of different instructions needs plain
matrix products and one multiplication, no gather of adapters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.prepacked import Weight, can_pack, pack


class LoraLinear(nn.Module):
    """`groups` projections of one input, side by side in one weight, each with its own A and B.

    weight: [groups * out, in]. lora_A: [groups, in, r]. lora_B: [groups, r, out]. A projection without
    LoRA keeps zeros there, which is exact.
    """

    def __init__(self, in_features: int, out_features: int, r: int, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        self.out_features = out_features
        self.merged = False
        self._packed: Tensor | None = None
        self._stacked: Tensor | None = None
        self.weight = nn.Parameter(torch.empty(groups * out_features, in_features))
        self.lora_A = nn.Parameter(torch.zeros(groups, in_features, r))
        self.lora_B = nn.Parameter(torch.zeros(groups, r, out_features))

    def forward(self, x: Tensor, scale: Tensor | None) -> Tensor:
        """x: [N, in]. scale: [N, out], or None for no LoRA at all. Returns [N, groups, out]."""
        y = F.linear(x, self.weight).view(-1, self.groups, self.out_features)
        if scale is None or self.merged:
            return y
        update = torch.bmm(torch.matmul(x, self.lora_A), self.lora_B)
        return torch.addcmul(y, update.transpose(0, 1), scale[:, None])

    def prepack(self, max_bytes: float) -> float:
        """Have `served` in oneDNN's order too, if `max_bytes` allow it; returns what is left of them."""
        weight = self._stack()
        if not can_pack(weight) or weight.nbytes > max_bytes:
            return max_bytes
        self._packed = pack(weight)
        return max_bytes - weight.nbytes

    def served(self) -> Weight:
        """W and below it all A, transposed, [groups * (out + r), in]: one product for both. Merged weights
        are W alone. From the first call on the parameters are views of it.
        """
        return Weight(self._stack(), self._packed)

    @torch.no_grad()
    def _stack(self) -> Tensor:
        if self.merged:
            return self.weight.data
        if self._stacked is None:
            rank_rows = self.lora_A.data.transpose(1, 2).flatten(0, 1)
            whole = self._stacked = torch.cat([self.weight.data, rank_rows])
            self.weight.data = whole[: len(self.weight)]
            low = whole[len(self.weight) :].view(self.groups, -1, whole.shape[1])
            self.lora_A.data = low.transpose(1, 2)
        return self._stacked

    @torch.no_grad()
    def merge(self, scale: Tensor) -> None:
        """Fold the LoRA at one fixed scale [out] into the weight, in place: W + (AB) diag(s).

        The product is taken in float64, so that merging adds one rounding and no more.
        """
        weight = self.weight.view(self.groups, self.out_features, -1)
        for group in range(self.groups):
            update = (self.lora_A[group].double() @ self.lora_B[group].double()) * scale.double()
            weight[group].copy_((weight[group].double() + update.t()).to(weight.dtype))
        self.merged = True
        self._packed = None
        self._stacked = None
        del self.lora_A, self.lora_B
