"""Audio seconds a second through both encoders, from waveforms on the host to embeddings."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.world import World, say
from model.pieces import finish

BATCHES = ((30.0, 16), (10.0, 32), (30.0, 1), (10.0, 1))
TINY_BATCHES = ((2.0, 2), (1.0, 1))


@torch.inference_mode()
def measure_encoders(world: World) -> dict[str, Any]:
    """By clip length and batch: audio seconds a second, and milliseconds of features and of each branch."""
    figures: dict[str, Any] = {}
    batches = TINY_BATCHES if not world.is_real else BATCHES
    for seconds, count in batches:
        figure = _measure(world, seconds, count)
        figures[f"{seconds:g}s_x{count}"] = figure
        say(f"  {count} clips of {seconds:g} s: {figure}")
    seconds, count = batches[0]
    clips = world.clips(count, seconds, seed=1)
    world.trace(
        f"encoders, {count} clips of {seconds:g} s", lambda: finish(world.core.runner.encoding(clips))
    )
    return figures


def _measure(world: World, seconds: float, count: int) -> dict[str, float]:
    runner, model = world.core.runner, world.model
    clips = world.clips(count, seconds, seed=int(seconds))
    repeats = 5 if count > 1 else 10
    total_s = world.seconds(lambda: finish(runner.encoding(clips)), repeats, warm=2)
    waves = [torch.from_numpy(wave) for wave in clips.values()]
    features = [model.clip_features(wave) for wave in waves]
    encoder = model.audio_encoder
    parts = {
        "features_ms": lambda: [model.clip_features(wave) for wave in waves],
        "whisper_ms": lambda: finish(encoder.encode_whisper(features)),
        "wavlm_ms": lambda: finish(encoder.encode_wavlm(features)),
    }
    figure = {"audio_s_per_s": count * seconds / total_s, "total_ms": 1e3 * total_s}
    return figure | {name: 1e3 * world.seconds(part, repeats=3, warm=1) for name, part in parts.items()}
