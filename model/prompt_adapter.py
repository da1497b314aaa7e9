"""The prompt-aware LoRA weight adapter: how strongly an instruction lets LoRA act (paper, section 3.2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.config import PromptAdapterConfig


class PromptAdapter(nn.Module):
    """Attention-pooled two-layer network over the instruction's hidden states.

    z = fc2(GELU(fc1(h))); a = softmax over tokens of attention(z); s = clamp(relu(sum a z), max = max_scale).
    """

    def __init__(self, hidden_size: int, config: PromptAdapterConfig) -> None:
        super().__init__()
        self.max_scale = config.max_scale
        self.fc1 = nn.Linear(hidden_size, config.hidden_size)
        self.fc2 = nn.Linear(config.hidden_size, hidden_size)
        self.attention = nn.Linear(hidden_size, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden: [n, D], all tokens of one instruction before the final norm -> s [D], 0 to max_scale."""
        return self.bounded(self.pooled(hidden))

    def pooled(self, hidden: Tensor, inside: Tensor | None = None) -> Tensor:
        """hidden: [..., n, D] -> [..., D], s before its bounds. inside: [..., n] bool, tokens that count."""
        z = self.fc2(F.gelu(self.fc1(hidden)))
        attention = self.attention(z)
        if inside is not None:
            attention = attention.masked_fill(~inside[..., None], float("-inf"))
        pooled: Tensor = (attention.softmax(dim=-2) * z).sum(dim=-2)
        return pooled

    def bounded(self, pooled: Tensor) -> Tensor:
        """Any shape -> the same, held between 0 and max_scale."""
        return pooled.relu().clamp(max=self.max_scale)
