"""Cached encoder outputs and manifests of one split, clip by clip."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.config import MEL_HOP, WavLMEncoderConfig
from training.corpus import ClipRecord, read_manifest
from training.recipe import State


def whisper_frames(num_samples: int) -> int:
    """Encoder frames (20 ms) kept of one window."""
    return (-(-num_samples // MEL_HOP) - 1) // 2 + 1


def wavlm_frames(num_samples: int, config: WavLMEncoderConfig) -> int:
    """Frames that the convolutional front end leaves."""
    for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
        num_samples = (num_samples - kernel) // stride + 1
    return num_samples


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip of the cache. shard: number of its files; first: its first frame there."""

    record: ClipRecord
    shard: int
    whisper_first: int
    wavlm_first: int


class Dataset:
    """All clips of a split that have been encoded; frames are read from memory-mapped files on demand."""

    def __init__(self, state: State, split: str, config: WavLMEncoderConfig) -> None:
        self._config = config
        self._folders = {what: state.shards(what, split) for what in ("whisper", "wavlm")}
        self._maps: dict[tuple[str, int], np.ndarray] = {}
        self.clips: list[Clip] = []
        for manifest in sorted(state.shards("speech", split).glob("*.jsonl")):
            if all((folder / f"{manifest.stem}.npy").exists() for folder in self._folders.values()):
                self._add(manifest)
        if not self.clips:
            raise FileNotFoundError(f"{state.root}: no encoded clips of the {split} split")

    def _add(self, manifest: Path) -> None:
        first, second = 0, 0
        for record in read_manifest(manifest):
            self.clips.append(Clip(record, int(manifest.stem), first, second))
            first += whisper_frames(record.num_samples)
            second += wavlm_frames(record.num_samples, self._config)

    def __len__(self) -> int:
        return len(self.clips)

    def whisper(self, clip: Clip) -> Tensor:
        """[F, d_model] float16."""
        return self._rows("whisper", clip.shard, clip.whisper_first, whisper_frames(clip.record.num_samples))

    def wavlm(self, clip: Clip) -> Tensor:
        """[F, layers + 1, C] float16."""
        frames = wavlm_frames(clip.record.num_samples, self._config)
        return self._rows("wavlm", clip.shard, clip.wavlm_first, frames)

    def silence(self, clip: Clip) -> Tensor:
        """Zeros in place of `wavlm`, for a stage in which the acoustic branch says nothing. Reads no file."""
        frames = wavlm_frames(clip.record.num_samples, self._config)
        layers = self._config.num_hidden_layers + 1
        return torch.zeros(1, dtype=torch.float16).expand(frames, layers, self._config.hidden_size)

    def _rows(self, what: str, shard: int, first: int, count: int) -> Tensor:
        key = (what, shard)
        if key not in self._maps:
            self._maps[key] = np.load(self._folders[what] / f"{shard:05}.npy", mmap_mode="r")
        return torch.from_numpy(self._maps[key][first : first + count].copy())


def epoch_order(size: int, seed: str, step: int, batch: int) -> list[int]:
    """Clips of step `step`. Every epoch has an order of its own, which seed and step alone decide, so that a
    run resumes exactly.
    """
    per_epoch = max(1, size // batch)
    order = list(range(size))
    random.Random(f"{seed}/{step // per_epoch}").shuffle(order)
    start = step % per_epoch * batch
    return order[start : start + batch]
