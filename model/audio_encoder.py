"""The two branches that hear a clip, and their fusion into the language model's space (paper, section 3.1).

Batching rules, each of which keeps a clip's result equal to what it gets alone:
  - Whisper reads fixed windows, so windows of many clips form one batch.
  - WavLM's first convolution may carry a GroupNorm over time, so the convolutional front end runs per
    clip; its outputs are padded, and the transformer masks the padding.
  - Subsamplers run per clip, because a convolution's zero padding must start where the clip ends.

Encoding is a generator that yields between pieces of bounded work (model/pieces.py), so that a clip of a
minute need not hold up running answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrize import remove_parametrizations

from model.audio_features import ClipFeatures
from model.config import BranchConfig, SpeechLLMConfig
from model.pieces import FRAME_MULTIPLE, Pieces, convolve, finish, pauses
from model.prepacked import gelu_of
from model.wavlm_encoder import WavLMFrontEnd, WavLMTransformer
from model.wavlm_modules import WavLM
from model.whisper_encoder import WhisperEncoder, encode_windows


class Bottleneck(nn.Module):
    """Residual adapter: x + LayerNorm(up(GELU(down(x))))."""

    def __init__(self, size: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Linear(size, inner)
        self.up = nn.Linear(inner, size)
        self.norm = nn.LayerNorm(size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        out: Tensor = x + self.norm(self.up(gelu_of(self.down, x)))
        return out


class Branch(nn.Module):
    """Subsampler (two convolutions of stride 2 with GLU), bottleneck adapter, projector."""

    def __init__(self, in_channels: int, config: BranchConfig) -> None:
        super().__init__()
        inner = config.subsample_channels
        self.subsampler: Any = nn.ModuleList(
            [
                nn.Conv1d(in_channels, inner, 3, stride=2, padding=1),
                nn.Conv1d(inner // 2, 2 * config.channels, 3, stride=2, padding=1),
            ]
        )
        self.bottleneck = Bottleneck(config.channels, config.bottleneck_size)
        self.projector = nn.Linear(config.channels, config.output_size)

    def forward(self, x: Tensor) -> Tensor:
        """[B, F, in channels] of equal lengths -> [B, subsampled_length(F), output size]."""
        return finish(self.pieces(x))

    def pieces(self, x: Tensor) -> Pieces[Tensor]:
        """The same, piece by piece."""
        x = x.transpose(1, 2)
        for layer in self.subsampler:
            x = F.glu((yield from convolve(layer, x, FRAME_MULTIPLE)), dim=1)
        out: Tensor = self.projector(self.bottleneck(x.transpose(1, 2)))
        return out


class AudioEncoder(nn.Module):
    """Clips -> embeddings that the language model reads between its two prompt parts."""

    def __init__(self, config: SpeechLLMConfig) -> None:
        super().__init__()
        self.whisper = WhisperEncoder(config.whisper)
        self.wavlm = WavLM(config.wavlm)
        self.wavlm_layer_weights = nn.Parameter(torch.ones(config.wavlm.num_hidden_layers + 1))
        self.whisper_branch = Branch(config.whisper.d_model, config.whisper_branch)
        self.wavlm_branch = Branch(config.wavlm.hidden_size, config.wavlm_branch)
        self.fusion = nn.Linear(config.fusion_size, config.llama.hidden_size)

    def fold_weight_norm(self) -> None:
        """Replace the positional convolution's weight norm by its product, once the weights are loaded."""
        remove_parametrizations(self.wavlm.encoder.pos_conv_embed.conv, "weight")

    def forward(self, clips: Sequence[ClipFeatures]) -> list[Tensor]:
        """One [num_audio_tokens(T), D] tensor per clip."""
        pairs = zip(finish(self.encode_whisper(clips)), finish(self.encode_wavlm(clips)), strict=True)
        return [self.fuse(whisper, wavlm) for whisper, wavlm in pairs]

    def fuse(self, whisper: Tensor, wavlm: Tensor) -> Tensor:
        """[n1, ...], [n2, ...] -> [min(n1, n2), D]."""
        shorter = min(len(whisper), len(wavlm))
        fused: Tensor = self.fusion(torch.cat([whisper[:shorter], wavlm[:shorter]], dim=-1))
        return fused

    def encode_whisper(self, clips: Sequence[ClipFeatures]) -> Pieces[list[Tensor]]:
        """Per clip [windows * subsampled frames, output size]: its windows' outputs end to end."""
        weight = self.whisper.conv1.weight
        log_mel = torch.cat([clip.log_mel for clip in clips]).to(weight.device, weight.dtype)
        hidden = yield from encode_windows(self.whisper, log_mel, max(clip.num_frames for clip in clips))
        branched = []
        for part, clip in zip(torch.split(hidden, [len(clip.log_mel) for clip in clips]), clips, strict=True):
            out = yield from self.whisper_branch.pieces(part[:, : clip.num_frames])
            branched.append(out.flatten(0, 1))
        return branched

    def encode_wavlm(self, clips: Sequence[ClipFeatures]) -> Pieces[list[Tensor]]:
        """Per clip [subsampled frames, output size]."""
        states, lengths = yield from self.wavlm_states([clip.wave for clip in clips])
        mixed = yield from self._mix(states)
        branched = []
        for row, length in zip(mixed, lengths, strict=True):
            branched.append((yield from self.wavlm_branch.pieces(row[None, :length]))[0])
        return branched

    def wavlm_states(self, waves: Sequence[Tensor]) -> Pieces[tuple[list[Tensor], list[int]]]:
        """Waves [T] -> all layers' outputs, layers + 1 tensors [B, F, C], rows padded to F; their frames."""
        weight = self.wavlm_layer_weights
        front_end = WavLMFrontEnd(self.wavlm)
        projected = []
        for wave in waves:
            projected.append((yield from front_end(wave.to(weight.device, weight.dtype))))
            yield from pauses(weight)
        lengths = [len(rows) for rows in projected]
        padded = nn.utils.rnn.pad_sequence(projected, batch_first=True)
        states = yield from WavLMTransformer(self.wavlm)(padded, lengths)
        return states, lengths

    def _mix(self, states: Sequence[Tensor]) -> Pieces[Tensor]:
        """The weighed sum [B, F, C] of all layers' outputs, added up in float32 at least."""
        dtype = states[0].dtype
        mixed = torch.zeros_like(states[0], dtype=torch.promote_types(dtype, torch.float32))
        for weight, state in zip(self.wavlm_layer_weights.softmax(0), states, strict=True):
            mixed.addcmul_(state, weight)
            if not mixed.is_cuda:
                yield
        return mixed.to(dtype)
