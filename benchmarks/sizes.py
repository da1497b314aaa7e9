"""The models that are measured: the embedded default, and a middle size whose arithmetic outweighs Python.

Both as directories that `wavllm serve --model` takes. Answers of the middle size never end early, so that
every answer has the tokens that the workload says.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
from pathlib import Path

from model.checkpoint_format import NewDirectory
from model.config import (
    BranchConfig,
    LlamaConfig,
    LoraConfig,
    PromptAdapterConfig,
    SpeechLLMConfig,
    WavLMEncoderConfig,
    WhisperEncoderConfig,
)
from model.tiny import CORPUS, write_random

ROOT = Path(__file__).resolve().parents[1]
DEFAULT = ROOT / "model" / "default"
WORK = ROOT / "build" / "benchmarks"
"""Models and environments that the benchmarks make; ignored by git, and safe to delete."""
VOCAB_SIZE = 8192
NUM_WORDS = 40_000
SEED = 20240404


def middle_config() -> SpeechLLMConfig:
    """Whisper base's encoder, WavLM base (12 layers), a LLaMA of 8 layers and width 1024: 243 M weights.

    The LLaMA alone has 122 M. EOS is suppressed: an answer ends at its last allowed token.
    """
    return SpeechLLMConfig(
        whisper=WhisperEncoderConfig(512, 6, 8, 2048),
        wavlm=WavLMEncoderConfig(768, 12, 12, 3072),
        whisper_branch=BranchConfig(512, 512, 256, 512),
        wavlm_branch=BranchConfig(512, 512, 256, 512),
        llama=LlamaConfig(1024, 8, 16, 2816, VOCAB_SIZE, suppress_token_ids=(0, 2)),
        lora=LoraConfig(32),
        prompt_adapter=PromptAdapterConfig(256),
        name="wavllm-middle-random",
        random_weights=True,
    )


def make_middle(directory: Path) -> Path:
    """The middle size with seeded random float32 weights (0.9 GB), written if it is not there yet."""
    if not directory.is_dir():
        write_random(directory, middle_config(), [*CORPUS, *made_up_words(NUM_WORDS)])
    return directory


def make_endless_default(directory: Path) -> Path:
    """The embedded default with EOS suppressed, copied if it is not there yet."""
    if not directory.is_dir():
        with NewDirectory(directory) as new:
            shutil.copytree(DEFAULT, new.path, dirs_exist_ok=True)
            config = SpeechLLMConfig.load(DEFAULT)
            llama = dataclasses.replace(config.llama, suppress_token_ids=(0, config.llama.eos_token_id))
            dataclasses.replace(config, llama=llama).save(new.path)
    return directory


MODELS = {"default": make_endless_default, "middle": make_middle}


def open_size(name: str) -> Path:
    """The directory of one of MODELS, made under build/benchmarks at first use."""
    return MODELS[name](WORK / name)


def made_up_words(count: int) -> list[str]:
    """Pronounceable words, for a vocabulary of pieces."""
    rng = random.Random(SEED)
    consonants, vowels = "bcdfghjklmnprstvwz", "aeiou"
    return [
        "".join(rng.choice(consonants) + rng.choice(vowels) for _ in range(rng.randint(1, 4)))
        for _ in range(count)
    ]
