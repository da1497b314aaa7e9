"""Models of random weights whose answers never end early, so that a test decides how long a request runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from model.config import LlamaConfig, SpeechLLMConfig, WhisperEncoderConfig
from model.tiny import make_tiny


def make_endless(directory: Path, *, layers: int = 3) -> Path:
    """The tiny model, but its answers run to max_tokens: EOS is never taken. More layers, slower tokens."""
    return _make(directory, SpeechLLMConfig.tiny(), layers)


def make_slow(directory: Path) -> Path:
    """Endless, and slow in every stage: a second and more to encode 30 s, some milliseconds a token.

    The short window keeps the start quick: the warm-up encodes one of them.
    """
    whisper = WhisperEncoderConfig(256, 8, 4, 1024, max_source_positions=250)
    tiny = SpeechLLMConfig.tiny()
    branch = dataclasses.replace(tiny.whisper_branch, subsample_channels=64)
    config = dataclasses.replace(tiny, whisper=whisper, window_seconds=5, whisper_branch=branch)
    return _make(directory, config, layers=16)


def _make(directory: Path, config: SpeechLLMConfig, layers: int) -> Path:
    llama: LlamaConfig = config.llama
    never = (0, llama.eos_token_id)
    llama = dataclasses.replace(llama, num_hidden_layers=layers, suppress_token_ids=never)
    make_tiny(directory, dataclasses.replace(config, llama=llama))
    return directory
