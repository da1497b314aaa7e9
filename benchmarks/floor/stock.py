"""The encoders as transformers runs them, on the same weights; then our branches, which it does not have."""

from __future__ import annotations

import torch
from torch import Tensor

from model.audio_encoder import AudioEncoder
from model.audio_features import ClipFeatures


@torch.inference_mode()
def encode_whisper(encoder: AudioEncoder, clip: ClipFeatures) -> Tensor:
    """[windows * subsampled frames, output size], by WhisperEncoder.forward (SDPA)."""
    hidden: Tensor = encoder.whisper(clip.log_mel).last_hidden_state
    branched: Tensor = encoder.whisper_branch(hidden[:, : clip.num_frames])
    return branched.flatten(0, 1)


@torch.inference_mode()
def encode_wavlm(encoder: AudioEncoder, clip: ClipFeatures) -> Tensor:
    """[subsampled frames, output size], by WavLMModel.forward; its weight norm is folded, as ours is."""
    states = encoder.wavlm(clip.wave[None], output_hidden_states=True).hidden_states
    return encoder.fold_wavlm(torch.stack(states)[:, 0])
