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
        z = self.fc2(F.gelu(self.fc1(hidden)))
        pooled: Tensor = (self.attention(z).softmax(dim=0) * z).sum(dim=0)
        return pooled.relu().clamp(max=self.max_scale)
