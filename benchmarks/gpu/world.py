"""What the parts share: the device, a model of random weights made on it, an engine around it, a clock."""

from __future__ import annotations

import dataclasses
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.sizes import middle_config
from model.config import SAMPLE_RATE, SpeechLLMConfig
from model.speech_llm import SpeechLLM
from model.tiny import CORPUS, random_model
from model.tokenizer import Tokenizer, train_tokenizer
from server.engine.build import warm_core
from server.engine.core import EngineCore
from server.types import EngineConfig

SEED = 20240404
SIZES: dict[str, Callable[[], SpeechLLMConfig]] = {
    "released": SpeechLLMConfig.released,
    "middle": middle_config,
    "tiny": lambda: SpeechLLMConfig.tiny(512),
}
PAGE_SIZE = 16
TABLE_ROWS = 25


def say(text: str) -> None:
    """A line of progress, seen at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


class FoldedTokenizer(Tokenizer):
    """Gives text for every id of a larger vocabulary: the text means nothing anyway."""

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids, each taken modulo the pieces there are."""
        return super().decode([token % self.vocab_size for token in ids])


@dataclass
class World:
    """device, dtype and size of the run. tables: profiles, written beside the figures."""

    device: torch.device
    dtype: torch.dtype
    size: str
    answer_tokens: int
    tables: list[str] = field(default_factory=list)

    @property
    def on_gpu(self) -> bool:
        """Whether there are device clocks and graphs."""
        return self.device.type == "cuda"

    @property
    def is_real(self) -> bool:
        """Whether the figures mean anything: not at the tiny size, which is there to try the code."""
        return self.size != "tiny"

    @property
    def most_rows(self) -> int:
        """Sequences of the largest step."""
        return 64 if self.is_real else 4

    @property
    def context(self) -> int:
        """Tokens of each sequence whose decode step is measured."""
        return 512 if self.is_real else 32

    @functools.cached_property
    def config(self) -> SpeechLLMConfig:
        """Sizes in which no answer ends before its last token."""
        config = SIZES[self.size]()
        llama = dataclasses.replace(config.llama, suppress_token_ids=(0, config.llama.eos_token_id))
        return dataclasses.replace(config, llama=llama, random_weights=True)

    @functools.cached_property
    def model(self) -> SpeechLLM:
        """Seeded random weights."""
        return random_model(self.config, self.device, self.dtype, SEED)

    @functools.cached_property
    def core(self) -> EngineCore:
        """A warm engine with room for its largest step, at twice the context or at the longest prompt."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.model"
            path.write_bytes(train_tokenizer(512, CORPUS))
            tokenizer = FoldedTokenizer(path)
        pages = self.most_rows * max(2 * self.context, 256) // PAGE_SIZE
        config = EngineConfig(
            Path(),
            max_batch_size=self.most_rows,
            num_pages=pages,
            page_size=PAGE_SIZE,
            encoder_cache_mb=4096.0,
        )
        return warm_core(config, self.model, tokenizer)

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], Any], repeats: int = 20, warm: int = 3) -> float:
        """Median of single calls between two clock readings of the device, each after the last has ended."""
        repeats, warm = (repeats, warm) if self.is_real else (2, 1)
        for _ in range(warm):
            work()
        taken = []
        for _ in range(repeats):
            self.synchronize()
            begin = time.perf_counter()
            work()
            self.synchronize()
            taken.append(time.perf_counter() - begin)
        return statistics.median(taken)

    def queued_seconds(self, work: Callable[[], Any], repeats: int = 20, warm: int = 3) -> float:
        """Mean of calls queued back to back, so that launches hide behind work where they can."""
        for _ in range(warm):
            work()
        self.synchronize()
        begin = time.perf_counter()
        for _ in range(repeats):
            work()
        self.synchronize()
        return (time.perf_counter() - begin) / repeats

    def trace(self, title: str, work: Callable[[], Any]) -> None:
        """Profile one call: its kernels by time, kept in `tables`."""
        work()
        self.synchronize()
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self.on_gpu
        with profile(activities=activities) as profiler:
            work()
            self.synchronize()
        name, kind = ("device", "CUDA") if self.on_gpu else ("cpu", "CPU")
        # On a GPU the kernels alone: operators on the host are given their kernels' time a second time.
        events = [event for event in profiler.key_averages() if str(event.device_type).endswith(kind)]
        rows = [(float(getattr(e, f"self_{name}_time_total")) / 1e3, e.count, e.key) for e in events]
        rows = sorted((row for row in rows if row[0] > 0), reverse=True)
        total = sum(row[0] for row in rows)
        lines = [f"{title}: {total:.3f} ms in {sum(row[1] for row in rows)} calls of {len(rows)} kinds"]
        lines += [f"{ms:9.3f} ms {count:6d} x  {key[:110]}" for ms, count, key in rows[:TABLE_ROWS]]
        self.tables.append("\n".join(lines))
        say(self.tables[-1])

    def clips(self, count: int, seconds: float, seed: int) -> dict[bytes, npt.NDArray[np.float32]]:
        """Noise that no other seed has, [T] float32 at 16 kHz each, by key."""
        noise = np.random.default_rng(seed)
        return {
            f"{seed}-{i}".encode(): 0.1 * noise.standard_normal(int(seconds * SAMPLE_RATE), dtype=np.float32)
            for i in range(count)
        }
