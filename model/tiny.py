"""A small directory of random weights, for tests and benchmarks.

    python -m model.tiny DIRECTORY

It answers noise, and its configuration says so (`random_weights`).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from model.checkpoint import empty_model, tensor_places
from model.checkpoint_format import ShardWriter, expected_tensors
from model.config import SpeechLLMConfig
from model.prompt import SYSTEM
from model.speech_llm import SpeechLLM
from model.tokenizer import train_tokenizer

VOCAB_SIZE = 512
SEED = 20240404
CORPUS = (
    SYSTEM,
    "[INST]<<SYS>>\n<</SYS>>\n\n<SPEECH> </SPEECH> [/INST]",
    "Based on the attached audio, generate a comprehensive text transcription of the spoken content.",
    "Translate the audio clip into German. Is there only one speaker in the audio clip?",
    "Can you describe the emotional condition of the speaker in the provided audio clip?",
    "What was said in the recording? Answer the question and summarise the conversation in a few words.",
    "The quick brown fox jumps over the lazy dog while five wizards vex bold judges near my quay.",
)
GAINS = {"whisper.embed_positions.weight": 0.02, "lora_A": 0.3, "lora_B": 0.3, "lm_head": 0.35}
"""Standard deviations where the usual 1 / sqrt(inputs) would not do."""
LORA_INPUTS = {"lora_A": 128, "lora_B": 8}
"""Inputs at which those of the LoRA hold. With more its weights are smaller in proportion: attention whose
scores are in the hundreds would answer by rounding alone."""


def make_tiny(directory: Path, config: SpeechLLMConfig | None = None, seed: int = SEED) -> SpeechLLMConfig:
    """Write a directory of seeded random weights. Raises CheckpointError if something is there already."""
    config = config or SpeechLLMConfig.tiny(VOCAB_SIZE)
    write_random(directory, config, CORPUS, seed)
    return config


def write_random(directory: Path, config: SpeechLLMConfig, texts: Iterable[str], seed: int = SEED) -> None:
    """Write a directory of seeded random float32 weights and a tokenizer that was trained on `texts`.

    Raises CheckpointError if something is there already.
    """
    generator = torch.Generator().manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = Path(folder) / "tokenizer.model"
        tokenizer.write_bytes(train_tokenizer(config.llama.vocab_size, texts))
        with ShardWriter(directory, config, tokenizer=tokenizer) as writer:
            for name, shape in expected_tensors(config).items():
                writer.add(name, _random(name, shape, generator))


@torch.no_grad()
def random_model(config: SpeechLLMConfig, device: torch.device, dtype: torch.dtype, seed: int) -> SpeechLLM:
    """The same kind of weights, made on the device without a directory, for sizes that nobody would write."""
    model = empty_model(config, device, dtype)
    generator = torch.Generator(device).manual_seed(seed)
    shapes = expected_tensors(config)
    for name, place in tensor_places(model).items():
        place.copy_(_random(name, shapes[name], generator).reshape(place.shape))
    model.audio_encoder.fold_weight_norm()
    return model.eval().requires_grad_(False)


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Norms are ones, biases small, matrices keep the size of what passes through them."""
    device = generator.device
    if "norm" in name or name.endswith(("original0", "gru_rel_pos_const")):
        return torch.full(shape, 0.0 if name.endswith(".bias") else 1.0, device=device)
    noise = torch.randn(shape, generator=generator, device=device)
    if len(shape) == 1:
        return noise * 0.02
    gain = next((gain for part, gain in GAINS.items() if part in name), None)
    fan_in = torch.Size(shape[1:]).numel()
    noise *= gain if gain is not None else fan_in**-0.5
    inputs = next((inputs for part, inputs in LORA_INPUTS.items() if part in name), None)
    return noise if inputs is None else noise * (inputs / shape[0])


if __name__ == "__main__":
    make_tiny(Path(sys.argv[1]))
