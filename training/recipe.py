"""What is trained, on how much, for how long: one frozen object per budget, and where its state lies."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from model.config import (
    BranchConfig,
    GenerationConfig,
    LlamaConfig,
    LoraConfig,
    PromptAdapterConfig,
    SpeechLLMConfig,
    WavLMEncoderConfig,
    WhisperEncoderConfig,
)

KINDS = {
    "everyday": 0.28,
    "ordinary": 0.33,
    "dialogue": 0.15,
    "story": 0.07,
    "question": 0.09,
    "digits": 0.08,
}
"""Share of each kind of script among the training clips."""


SHARES = {"copy": 0.1, "language": 0.26, "acoustic": 0.16, "align": 0.23, "single": 0.3, "joint": 0.11}
"""Of --seconds, by stage. `acoustic` runs beside `language`; the others come one after the other."""


@dataclass(frozen=True, slots=True)
class StageBudget:
    """Optimiser steps, clips a step, (instruction, answer) segments a clip, peak learning rate."""

    steps: int
    batch: int
    segments: int
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides the weights that come out.

    num_clips: training clips synthesised. shard_clips: clips in one file. augmented: share of clips that are
    made noisy, reverberant or narrow.
    copy, language, acoustic: stage 0. align, single: stage 1 (the paper's "mixed single-task" training).
    joint: stage 2 (its "advanced multi-task" training).
    single_share: share of single tasks in stage 2. ctc: weight of the alignment loss.
    use_prompt_adapter, use_wavlm: false for an ablation; the part then stays out of every number.
    two_stages: false for an ablation; all tasks and the prompt-aware adapter are then there from `single` on.
    """

    name: str = "wavllm-small"
    seed: int = 20261128
    num_clips: int = 49_152
    num_validation_clips: int = 256
    shard_clips: int = 128
    augmented: float = 0.4
    window_seconds: int = 10
    vocab_size: int = 2048
    copy: StageBudget = field(default_factory=lambda: StageBudget(1200, 32, 1, 2e-3))
    language: StageBudget = field(default_factory=lambda: StageBudget(10500, 12, 5, 1.5e-3))
    acoustic: StageBudget = field(default_factory=lambda: StageBudget(2500, 24, 1, 2e-3))
    align: StageBudget = field(default_factory=lambda: StageBudget(2400, 48, 1, 3e-3))
    single: StageBudget = field(default_factory=lambda: StageBudget(2600, 12, 5, 2e-3))
    joint: StageBudget = field(default_factory=lambda: StageBudget(2400, 20, 1, 6e-4))
    single_share: float = 0.45
    ctc: float = 0.3
    use_prompt_adapter: bool = True
    use_wavlm: bool = True
    two_stages: bool = True

    @classmethod
    def tiny(cls) -> Recipe:
        """The whole curriculum in a few minutes on two cores: proves that it runs, learns next to nothing."""
        return cls(
            name="wavllm-rehearsal",
            num_clips=128,
            num_validation_clips=32,
            shard_clips=32,
            copy=StageBudget(20, 8, 1, 2e-3),
            language=StageBudget(20, 8, 3, 2e-3),
            acoustic=StageBudget(10, 8, 1, 1e-3),
            align=StageBudget(20, 16, 1, 2e-3),
            single=StageBudget(30, 8, 3, 2e-3),
            joint=StageBudget(15, 8, 1, 5e-4),
        )

    @classmethod
    def large(cls) -> Recipe:
        """For one GPU, with --seconds: more clips, larger batches, more steps than there is time for."""
        most = 1_000_000
        return cls(
            num_clips=81_920,
            copy=StageBudget(2500, 256, 1, 2e-3),
            language=StageBudget(most, 128, 5, 2e-3),
            acoustic=StageBudget(most, 96, 1, 2e-3),
            align=StageBudget(most, 192, 1, 3e-3),
            single=StageBudget(most, 128, 5, 2e-3),
            joint=StageBudget(most, 256, 1, 1e-3),
        )

    def model_config(self, suppress: tuple[int, ...] = (0,)) -> SpeechLLMConfig:
        """Sizes of the network. suppress: token ids that an answer never takes."""
        return SpeechLLMConfig(
            whisper=WhisperEncoderConfig(384, 4, 6, 1536, 80, 50 * self.window_seconds),
            wavlm=WavLMEncoderConfig(
                hidden_size=128,
                num_hidden_layers=4,
                num_attention_heads=4,
                intermediate_size=384,
                conv_dim=(48, 64, 96, 128, 128),
                conv_kernel=(20, 8, 4, 4, 2),
                conv_stride=(10, 4, 2, 2, 2),
                num_conv_pos_embeddings=32,
                num_conv_pos_embedding_groups=8,
                num_buckets=64,
                max_bucket_distance=400,
            ),
            whisper_branch=BranchConfig(768, 448, 512, 256),
            wavlm_branch=BranchConfig(128, 96, 48, 64),
            llama=LlamaConfig(
                hidden_size=256,
                num_hidden_layers=5,
                num_attention_heads=4,
                intermediate_size=704,
                vocab_size=self.vocab_size,
                max_position_embeddings=1024,
                suppress_token_ids=suppress,
            ),
            lora=LoraConfig(16),
            prompt_adapter=PromptAdapterConfig(128),
            generation=GenerationConfig(max_repeats=5),
            name=self.name,
            window_seconds=self.window_seconds,
        )

    def save(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")


RECIPES = {"cpu": Recipe, "gpu": Recipe.large, "tiny": Recipe.tiny}


@dataclass(frozen=True, slots=True)
class State:
    """Paths of one training run. Everything in it can be made again; nothing outside it is written."""

    root: Path

    @property
    def tokenizer(self) -> Path:
        """The SentencePiece model."""
        return self.root / "tokenizer.model"

    def shards(self, what: str, split: str) -> Path:
        """Folder of "speech", "whisper" or "wavlm" shards of one split."""
        return self.root / what / split

    def checkpoint(self, stage: str) -> Path:
        """Weights, optimiser and step of one stage."""
        return self.root / "checkpoints" / f"{stage}.pt"

    def curve(self, stage: str) -> Path:
        """CSV of one stage's losses."""
        return self.root / "curves" / f"{stage}.csv"
