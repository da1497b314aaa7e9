"""transformers' Llama with a real PEFT LoRA, holding the same weights as ours: the oracle of the decoder.

Ours keeps Meta's layout (rotary pairs interleaved), transformers the half-split one, so the output channels
of q and k, and with them the columns of B and the entries of the scale that reach them, are permuted here.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig as TransformersConfig
from transformers import LlamaForCausalLM

from model.config import PROJECTIONS, LlamaConfig, LoraConfig
from model.llama import Llama
from model.lora import LoraLinear
from tests.model.random_weights import randomize

CONFIG = LlamaConfig(48, 3, 4, 80, 60, rope_theta=500.0, rms_norm_eps=1e-4, max_position_embeddings=128)
LORA = LoraConfig(5)


class ExactNorm(nn.Module):
    """RMSNorm spelled out, in the input's own precision; transformers' goes through float32."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.pow(2).sum(-1, keepdim=True) / x.shape[-1] + self.eps).sqrt() * self.weight


def build_ours(dtype: torch.dtype = torch.float64) -> Llama:
    """Our decoder with random weights, LoRA included."""
    llama = Llama(CONFIG, LORA).to(dtype).eval().requires_grad_(False)
    randomize(llama, seed=3)
    return llama


class Oracle:
    """transformers + PEFT on the weights of `ours`. `logits` folds a request's scale into B."""

    def __init__(self, ours: Llama) -> None:
        self._ours = ours
        self._half_split = half_split_order(CONFIG)
        base = LlamaForCausalLM(
            TransformersConfig(
                hidden_size=CONFIG.hidden_size,
                num_hidden_layers=CONFIG.num_hidden_layers,
                num_attention_heads=CONFIG.num_attention_heads,
                intermediate_size=CONFIG.intermediate_size,
                vocab_size=CONFIG.vocab_size,
                rms_norm_eps=CONFIG.rms_norm_eps,
                rope_theta=CONFIG.rope_theta,
                max_position_embeddings=CONFIG.max_position_embeddings,
                attn_implementation="sdpa",  # the eager one takes its softmax in float32
            )
        ).double()
        self._fill_base(base)
        config = PeftConfig(r=LORA.r, lora_alpha=LORA.r, target_modules=list(PROJECTIONS), lora_dropout=0.0)
        with warnings.catch_warnings():
            # PEFT still asks transformers by a name that will go.
            warnings.simplefilter("ignore", FutureWarning)
            self._model: Any = get_peft_model(base, config).double().eval()

    def hidden(self, embeddings: Tensor, scale: Tensor | None) -> Tensor:
        """[n, D] of one sequence and its scale [D], None for no LoRA -> hidden states [n, D], not normed."""
        decoder = self._model.base_model.model.model
        norm, decoder.norm = decoder.norm, nn.Identity()
        try:
            return self._run(decoder, embeddings, scale).last_hidden_state[0]
        finally:
            decoder.norm = norm

    def logits(self, embeddings: Tensor, scale: Tensor | None) -> Tensor:
        """[n, D] of one sequence and its scale [D], None for no LoRA -> logits [n, V]."""
        return self._run(self._model.base_model.model, embeddings, scale).logits[0]

    @torch.no_grad()
    def _run(self, module: nn.Module, embeddings: Tensor, scale: Tensor | None) -> Any:
        if scale is None:
            with self._model.disable_adapter():
                return module(inputs_embeds=embeddings[None])
        self._fill_lora(scale)
        return module(inputs_embeds=embeddings[None])

    def _fill_base(self, base: LlamaForCausalLM) -> None:
        ours, decoder = self._ours, base.model
        decoder.embed_tokens.weight.data = ours.embed_tokens.weight.data.clone()
        base.lm_head.weight.data = ours.lm_head.weight.data.clone()
        decoder.norm = ExactNorm(ours.norm.weight.data, CONFIG.rms_norm_eps)
        for theirs, block in zip(decoder.layers, ours.blocks, strict=True):
            gate, up = block.feed_forward.gate_up.weight.data.chunk(2)
            theirs.mlp.gate_proj.weight.data, theirs.mlp.up_proj.weight.data = gate, up
            theirs.mlp.down_proj.weight.data = block.feed_forward.down.weight.data
            theirs.input_layernorm = ExactNorm(block.attention_norm.weight.data, CONFIG.rms_norm_eps)
            after = block.feed_forward_norm.weight.data
            theirs.post_attention_layernorm = ExactNorm(after, CONFIG.rms_norm_eps)
            for name, linear, group in projections(block):
                weight = linear.weight.data.view(linear.groups, CONFIG.hidden_size, -1)[group]
                getattr(theirs.self_attn, name).weight.data = weight[self._order(name)].clone()

    def _fill_lora(self, scale: Tensor) -> None:
        decoder = self._model.base_model.model.model
        for theirs, block in zip(decoder.layers, self._ours.blocks, strict=True):
            for name, linear, group in projections(block):
                adapter = getattr(theirs.self_attn, name)
                folded = (linear.lora_B[group] * scale)[:, self._order(name)]
                adapter.lora_A["default"].weight.data = linear.lora_A[group].t().contiguous()
                adapter.lora_B["default"].weight.data = folded.t().contiguous()
                assert adapter.scaling["default"] == 1.0

    def _order(self, name: str) -> Tensor:
        return self._half_split if name in ("q_proj", "k_proj") else torch.arange(CONFIG.hidden_size)


def projections(block: Any) -> Iterator[tuple[str, LoraLinear, int]]:
    """Name, fused module and group of each projection of one of our blocks."""
    attention = block.attention
    for group, name in enumerate(PROJECTIONS[:3]):
        yield name, attention.qkv, group
    yield "o_proj", attention.o, 0


def half_split_order(config: LlamaConfig) -> Tensor:
    """[D]: for each channel of the half-split layout, where Meta's layout has it."""
    order = []
    for head in range(config.num_attention_heads):
        first = head * config.head_dim
        order += [first + 2 * i for i in range(config.head_dim // 2)]
        order += [first + 2 * i + 1 for i in range(config.head_dim // 2)]
    return torch.tensor(order)
