"""What each stage must spend, whoever computes it: matrix products with their weights, operations, bytes.

Operations are floating-point ones, two for each multiplication with its addition. Left out is what costs
time but no such pair: norms, activations, softmax, copies; and everything that an implementation computes
twice. So these are lower bounds. Counted by tests against torch's own counter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from model.audio_encoder import AudioEncoder, Branch
from model.llama import Llama
from model.prompt_adapter import PromptAdapter


@dataclass(frozen=True, slots=True)
class Product:
    """weight: [out, in], applied to so many rows [rows, in]."""

    weight: Tensor
    rows: int

    @property
    def flops(self) -> float:
        """Of the product."""
        return 2.0 * self.rows * self.weight.numel()


@dataclass(frozen=True, slots=True)
class Work:
    """products: dense ones, in the order in which a model takes them. other_flops: convolutions, attention,
    LoRA. bytes: every weight once, and the keys and values that are read or written.
    """

    products: tuple[Product, ...]
    other_flops: float
    bytes: int

    @property
    def product_flops(self) -> float:
        """Of the dense products alone."""
        return sum(product.flops for product in self.products)

    @property
    def flops(self) -> float:
        """Of everything."""
        return self.product_flops + self.other_flops

    def __add__(self, other: Work) -> Work:
        return Work(
            self.products + other.products,
            self.other_flops + other.other_flops,
            self.bytes + other.bytes,
        )


def whisper(encoder: AudioEncoder, windows: int, frames: int) -> Work:
    """The semantic branch. frames: of every window, so many reach the subsampler. Every layer reads all, and
    the last one needs no more than the keys and values of the others."""
    model: Any = encoder.whisper
    positions = model.config.max_source_positions
    rows, kept = windows * positions, windows * frames
    *first, last = model.layers
    seen = (last.self_attn.k_proj.weight, last.self_attn.v_proj.weight)
    others = [one for one in _weights(last) if not any(one is weight for weight in seen)]
    products = [product for layer in first for product in _products(layer, rows)]
    products += [Product(weight, rows) for weight in seen] + [Product(weight, kept) for weight in others]
    attention = 4.0 * (len(first) * rows + kept) * positions * model.config.d_model
    convolutions = _convolution(model.conv1, 2 * rows) + _convolution(model.conv2, rows)
    core = Work(tuple(products), attention + convolutions, _bytes(model.parameters()))
    return core + branch(encoder.whisper_branch, windows, frames)


def wavlm(encoder: AudioEncoder, samples: int) -> Work:
    """The acoustic branch over one clip."""
    model: Any = encoder.wavlm
    config = model.config
    convolutions, frames = 0.0, samples
    for layer in model.feature_extractor.conv_layers:
        (kernel,), (stride,) = layer.conv.kernel_size, layer.conv.stride
        frames = (frames - kernel) // stride + 1
        convolutions += _convolution(layer.conv, frames)
    convolutions += _convolution(model.encoder.pos_conv_embed.conv, frames)
    projection = _products(model.feature_projection, frames)
    products, gates = [], 0.0
    for layer in model.encoder.layers:
        gate = layer.attention.gru_rel_pos_linear.weight
        gates += Product(gate, frames * config.num_attention_heads).flops
        products += [one for one in _products(layer, frames) if one.weight is not gate]
    layers = len(model.encoder.layers)
    attention = 4.0 * frames * frames * config.hidden_size * layers
    mixing = 2.0 * (layers + 1) * frames * config.hidden_size
    other = convolutions + gates + attention + mixing
    core = Work((*projection, *products), other, _bytes(model.parameters()))
    return core + branch(encoder.wavlm_branch, 1, frames)


def branch(module: Branch, batch: int, frames: int) -> Work:
    """What follows an encoder: subsampler, bottleneck, projector."""
    convolutions = 0.0
    for convolution in module.subsampler:
        frames = (frames - 1) // 2 + 1
        convolutions += _convolution(convolution, batch * frames)
    dense = (*_products(module.bottleneck, batch * frames), *_products(module.projector, batch * frames))
    return Work(dense, convolutions, _bytes(module.parameters()))


def prompt_pass(llama: Llama, adapter: PromptAdapter, tokens: int) -> Work:
    """The instruction without LoRA, then the adapter that makes its scale."""
    reading = decoder(llama, tokens, pairs(0, tokens), kept=tokens, logits=0, lora=False)
    return reading + Work(_products(adapter, tokens), 0.0, _bytes(adapter.parameters()))


def prefill(llama: Llama, tokens: int) -> Work:
    """A whole prompt, and the logits of its last row."""
    return decoder(llama, tokens, pairs(0, tokens), kept=tokens, logits=1, lora=True)


def decode(llama: Llama, contexts: Sequence[int]) -> Work:
    """One token of each sequence. contexts: their tokens, with the new ones."""
    rows = len(contexts)
    return decoder(llama, rows, sum(contexts), kept=sum(contexts), logits=rows, lora=True)


def pairs(before: int, tokens: int) -> int:
    """Of a query and a key that it sees, where `tokens` follow on `before`."""
    return tokens * before + tokens * (tokens + 1) // 2


def decoder(llama: Llama, rows: int, pairs: int, *, kept: int, logits: int, lora: bool) -> Work:
    """One forward. kept: tokens whose keys and values are read or written, once each."""
    products, other, parameters = [], 0.0, []
    size = llama.config.hidden_size
    for layer in llama.blocks:
        projections = (layer.attention.qkv, layer.attention.o)
        dense = [*(one.weight for one in projections), *_weights(layer.feed_forward)]
        products += [Product(weight, rows) for weight in dense]
        parameters += dense
        if lora:
            low_rank = [part for one in projections for part in (one.lora_A, one.lora_B)]
            other += sum(2.0 * rows * part.numel() for part in low_rank)
            parameters += low_rank
        other += 4.0 * pairs * size
    if logits:
        products.append(Product(llama.lm_head.weight, logits))
        parameters.append(llama.lm_head.weight)
    cache = 2 * len(llama.blocks) * kept * size * llama.lm_head.weight.itemsize
    return Work(tuple(products), other, _bytes(parameters) + cache)


def _weights(module: nn.Module) -> list[Tensor]:
    return [part.weight for part in module.modules() if isinstance(part, nn.Linear)]


def _products(module: nn.Module, rows: int) -> tuple[Product, ...]:
    return tuple(Product(weight, rows) for weight in _weights(module))


def _convolution(module: nn.Module, outputs: int) -> float:
    """Every output sees the whole weight once; in groups, each channel its own part of it."""
    return 2.0 * outputs * math.prod(module.get_parameter("weight").shape)


def _bytes(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.nbytes for parameter in parameters)
