"""How far the serving dtype and the fused, captured step are from the plain forward in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.decode import flat, rows_of
from benchmarks.gpu.world import PAGE_SIZE, SEED, World, say
from model.config import LlamaConfig, LoraConfig, SpeechLLMConfig
from model.fused_llama import FusedLlama
from model.llama import FlatBatch, Llama, PrefillSpan
from model.tiny import random_model

ROWS = 64


def apart(got: Tensor, expected: Tensor) -> dict[str, float]:
    """Of logits [R, V]: largest and mean difference, its norm by the reference's, rows that agree."""
    got, expected = got.float(), expected.float()
    difference = (got - expected).abs()
    return {
        "max": float(difference.max()),
        "mean": float(difference.mean()),
        "relative_norm": float((got - expected).norm() / expected.norm()),
        "same_best": float((got.argmax(-1) == expected.argmax(-1)).float().mean()),
    }


@torch.inference_mode()
def measure_parity(world: World) -> dict[str, Any]:
    """Against float32 at a middle size, and of the captured step against the plain one at the full size."""
    figures: dict[str, Any] = {}
    torch.backends.cuda.matmul.allow_tf32 = False
    rounded = random_model(_parity_config(world), world.device, world.dtype, SEED).llama
    exact = Llama(rounded.config, LoraConfig(32)).to(world.device, torch.float32).eval()
    exact.load_state_dict(rounded.state_dict())
    reference = _chunk_logits(exact, world, None)
    figures["plain_against_float32"] = apart(_chunk_logits(rounded, world, None), reference)
    if world.core.runner.fused is not None:
        figures["fused_against_float32"] = apart(
            _chunk_logits(rounded, world, FusedLlama(rounded)), reference
        )
        figures["fused_float32"] = apart(_chunk_logits(exact, world, FusedLlama(exact)), reference)
    figures |= _captured(world)
    for name, figure in figures.items():
        say(f"  {name}: {figure}")
    return figures


def _parity_config(world: World) -> SpeechLLMConfig:
    """The encoders of the tiny size, and a decoder of 16 layers of the released head size."""
    config = SpeechLLMConfig.tiny(512)
    llama = config.llama if not world.is_real else LlamaConfig(2048, 16, 16, 5504, 32000)
    parts = {name: getattr(config, name) for name in config.__dataclass_fields__}
    return SpeechLLMConfig(**parts | {"llama": llama, "lora": LoraConfig(32)})


def _chunk_logits(llama: Llama, world: World, fused: FusedLlama | None) -> Tensor:
    """[ROWS, V] of one chunk of random embeddings with a random scale."""
    from model.kv_cache import KVCache

    dtype, size = llama.norm.weight.dtype, llama.config.hidden_size
    generator = torch.Generator(world.device).manual_seed(SEED)
    x = torch.randn(ROWS, size, generator=generator, device=world.device).to(world.dtype).to(dtype)
    scale = torch.rand(ROWS, size, generator=generator, device=world.device).to(world.dtype).to(dtype)
    cache = KVCache(llama.config, ROWS // PAGE_SIZE, PAGE_SIZE, dtype, world.device)
    steps = torch.arange(ROWS, device=world.device)
    pages = torch.arange(ROWS // PAGE_SIZE, device=world.device)
    batch = FlatBatch(x, steps, steps, scale, (PrefillSpan(0, ROWS, pages, ROWS),), None)
    if fused is not None:
        return fused.logits(fused.forward(batch, cache))
    return llama.logits(llama(batch, cache))


def _captured(world: World) -> dict[str, Any]:
    """Rows of a full batch through the graph, alone through the graph, and through the plain forward."""
    runner = world.core.runner
    if runner.graphs is None:
        return {}
    runner.cache.keys.normal_()
    runner.cache.values.normal_()
    rows = rows_of(world, runner.graphs.max_rows)
    batch = flat(world, rows)
    plain = world.model.logits(world.model(batch, runner.cache))
    suppressed = list(world.config.llama.suppress_token_ids)
    plain[:, suppressed] = 0.0
    together = runner.graphs.step(rows)[1].clone()
    together[:, suppressed] = 0.0
    alone = torch.cat([runner.graphs.step([row])[1].clone() for row in rows[:8]])
    alone[:, suppressed] = 0.0
    return {
        "captured_against_plain": apart(together, plain),
        "alone_against_batch": apart(alone, together[:8]),
    }
