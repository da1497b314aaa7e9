"""Frozen encoders' outputs, made once: float16 shards beside the speech they were heard in.

state/whisper/SPLIT/00012.npy   [frames of all clips, 384]
state/wavlm/SPLIT/00012.npy     [frames of all clips, layers + 1, C]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.audio_encoder import AudioEncoder
from model.audio_features import AudioFeatures
from model.config import SpeechLLMConfig
from model.pieces import finish
from model.whisper_encoder import WhisperEncoder, encode_windows
from training.corpus import read_shard, write_whole
from training.progress import track
from training.recipe import State
from training.whisper_tiny import find_model_bin, load_encoder_weights

Encode = Callable[[list[np.ndarray]], list[np.ndarray]]
BATCH = 8
"""Windows encoded together."""


def open_whisper(config: SpeechLLMConfig) -> WhisperEncoder:
    """Whisper tiny.en's encoder with a window of `window_seconds`, frozen."""
    encoder = WhisperEncoder(config.whisper)
    weights = load_encoder_weights(find_model_bin(), config.whisper.max_source_positions)
    encoder.load_state_dict(weights, strict=True)
    return encoder.eval().requires_grad_(False)


@torch.inference_mode()
def whisper_features(
    encoder: WhisperEncoder, windows: AudioFeatures, waves: list[np.ndarray]
) -> list[np.ndarray]:
    """Waves [T] of one window each -> frames [F, d_model] float16 each, as the branch reads them."""
    device = next(encoder.parameters()).device
    clips = [windows(torch.from_numpy(wave)) for wave in waves]
    log_mel = torch.cat([clip.log_mel for clip in clips]).to(device)
    hidden = finish(encode_windows(encoder, log_mel, max(clip.num_frames for clip in clips)))
    return [rows[: clip.num_frames].half().cpu().numpy() for rows, clip in zip(hidden, clips, strict=True)]


@torch.inference_mode()
def wavlm_features(encoder: AudioEncoder, waves: list[np.ndarray]) -> list[np.ndarray]:
    """Waves [T] -> all layers' outputs [F, layers + 1, C] float16 each."""
    states, lengths = finish(encoder.wavlm_states([torch.from_numpy(wave) for wave in waves]))
    rows = torch.stack(states, dim=2).half().cpu().numpy()
    return [rows[i, :length] for i, length in enumerate(lengths)]


def extract_whisper(config: SpeechLLMConfig, state: State, device: torch.device, workers: int = 0) -> None:
    """Encode what is missing with Whisper."""
    encoder = open_whisper(config)
    extract(state, "whisper", WhisperEncode(encoder, AudioFeatures(config), device), workers)


def extract_wavlm(
    encoder: AudioEncoder, config: SpeechLLMConfig, state: State, device: torch.device, workers: int = 0
) -> None:
    """Encode what is missing with the WavLM that the acoustic stage trained."""
    extract(state, "wavlm", WavLMEncode.of(encoder, config, device), workers)


@dataclass
class WhisperEncode:
    """Waves -> Whisper's frames, in whichever process it is called."""

    encoder: WhisperEncoder
    windows: AudioFeatures
    device: torch.device

    def __call__(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        """See `whisper_features`."""
        return whisper_features(self.encoder.to(self.device), self.windows, waves)


@dataclass
class WavLMEncode:
    """Waves -> WavLM's states, in whichever process it is called.

    It travels as weights by name: transformers' weight norm cannot be pickled, and not every machine can hand
    CUDA memory to another process.
    """

    config: SpeechLLMConfig
    weights: dict[str, Tensor]
    device: torch.device

    @classmethod
    def of(cls, encoder: AudioEncoder, config: SpeechLLMConfig, device: torch.device) -> WavLMEncode:
        """With the weights of an encoder."""
        return cls(config, {name: value.cpu() for name, value in encoder.state_dict().items()}, device)

    @cached_property
    def encoder(self) -> AudioEncoder:
        """The encoder again, in this process."""
        encoder = AudioEncoder(self.config)
        encoder.load_state_dict(self.weights)
        return encoder.eval().to(self.device)

    def __call__(self, waves: list[np.ndarray]) -> list[np.ndarray]:
        """See `wavlm_features`."""
        return wavlm_features(self.encoder, waves)


def extract(state: State, what: str, encode: Encode, workers: int = 0) -> None:
    """Encode the missing shards of both splits. workers: processes beside this one; 0: this one alone.

    Computing a shard keeps one core busy whatever the device, so on a GPU several processes share it.
    """
    for split in ("train", "validation"):
        speech, folder = state.shards("speech", split), state.shards(what, split)
        numbers = sorted(int(path.stem) for path in speech.glob("*.jsonl"))
        missing = [n for n in numbers if not (folder / f"{n:05}.npy").exists()]
        job = partial(_encode_shard, speech, folder, encode)
        with track(f"Encoding with {what} ({split})", len(numbers), len(numbers) - len(missing)) as advance:
            for _ in _spread(job, missing, workers):
                advance(1)


def _spread(job: Callable[[int], None], numbers: list[int], workers: int) -> Iterator[None]:
    if workers == 0 or len(numbers) < 2:
        yield from map(job, numbers)
        return
    context = torch.multiprocessing.get_context("spawn")
    chunk = -(-len(numbers) // (4 * workers))  # the network travels with each
    with context.Pool(min(workers, len(numbers)), torch.set_num_threads, (1,)) as pool:
        yield from pool.imap_unordered(job, numbers, chunk)


def _encode_shard(speech: Path, folder: Path, encode: Encode, number: int) -> None:
    waves = [wave for _, wave in read_shard(speech, number)]
    rows = [part for i in range(0, len(waves), BATCH) for part in encode(waves[i : i + BATCH])]
    with write_whole(folder / f"{number:05}.npy") as path, path.open("wb") as file:
        np.save(file, np.concatenate(rows))
