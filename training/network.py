"""The serving model, made ready to learn: first weights, frozen parts, and its losses.

Every layer is model/'s own; what is here strings them together for dense batches with gradients.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import WavLMConfig, WavLMModel

from model.audio_encoder import AudioEncoder, Branch
from model.config import SpeechLLMConfig, WavLMEncoderConfig
from model.speech_llm import SpeechLLM
from training.batch import MaskedAttention, Packed, Ragged, visible

IGNORE = -100
ADAPTER_STD = 0.002
"""Of the prompt adapter's last weights: it reads hidden states before the norm, numbers around 10."""
LAST_LAYER = 2.0
"""Of the mix of WavLM's layers, before the softmax: the last one is where voices have been compared."""


def new_model(config: SpeechLLMConfig, seed: int) -> SpeechLLM:
    """A SpeechLLM with first weights: LoRA and acoustic branch silent, the prompt adapter's scale near 1."""
    torch.manual_seed(seed)
    model = SpeechLLM(config)
    model.audio_encoder.wavlm.load_state_dict(_first_wavlm(config.wavlm))
    with torch.no_grad():
        _first_llama(model)
        nn.init.normal_(model.prompt_adapter.fc2.weight, std=ADAPTER_STD)
        nn.init.ones_(model.prompt_adapter.fc2.bias)
        nn.init.zeros_(model.audio_encoder.fusion.bias)
        model.audio_encoder.wavlm_layer_weights[-1] = LAST_LAYER
    silence_wavlm(model)
    return model


def _first_wavlm(config: WavLMEncoderConfig) -> dict[str, Tensor]:
    """State of a WavLM with first weights as transformers draws them."""
    options: dict[str, Any] = dataclasses.asdict(config) | {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    state: dict[str, Tensor] = WavLMModel(WavLMConfig(**options)).state_dict()
    return state


def _first_llama(model: SpeechLLM) -> None:
    size, layers = model.config.llama.hidden_size, model.config.llama.num_hidden_layers
    nn.init.normal_(model.llama.embed_tokens.weight, std=size**-0.5)
    # The same weights to begin with (not tied later): what a piece reads as and what writes it are then one
    # direction, and to copy a piece is one linear map for all of them.
    model.llama.lm_head.weight.copy_(model.llama.embed_tokens.weight)
    for block in model.llama.blocks:
        linears = (
            block.attention.qkv,
            block.attention.o,
            block.feed_forward.gate_up,
            block.feed_forward.down,
        )
        for linear in linears:
            nn.init.normal_(linear.weight, std=linear.weight.shape[1] ** -0.5)
        for out in (block.attention.o, block.feed_forward.down):
            out.weight.div_(math.sqrt(2 * layers))
        for lora in (block.attention.qkv, block.attention.o):
            nn.init.normal_(lora.lora_A, std=size**-0.5)


@torch.no_grad()
def silence_wavlm(model: SpeechLLM) -> None:
    """Make the acoustic branch say nothing, here and when served: where it begins, and an ablation."""
    nn.init.zeros_(model.audio_encoder.wavlm_branch.projector.weight)
    nn.init.zeros_(model.audio_encoder.wavlm_branch.projector.bias)


@torch.no_grad()
def fix_scale(model: SpeechLLM) -> None:
    """Make the prompt adapter's scale 1 for every instruction, here and when served: an ablation."""
    nn.init.zeros_(model.prompt_adapter.fc2.weight)
    nn.init.ones_(model.prompt_adapter.fc2.bias)


def train_only(model: nn.Module, *prefixes: str) -> None:
    """Freeze all parameters but those whose name starts with one of `prefixes` or holds one after a dot."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(name.startswith(p) or f".{p}" in name for p in prefixes))


def answer_logits(model: SpeechLLM, packed: Packed, audio: Tensor | None, scale: Tensor | None) -> Tensor:
    """[R, V] logits of the answers' tokens.

    audio: [sum num_audio, D] embeddings, or None. scale: [B, D] LoRA strength of each item, or None for off.
    """
    x = model.llama.embed_tokens(packed.ids)
    if audio is not None and len(packed.audio_rows):
        x = x.index_copy(0, packed.audio_rows, audio)
    # index_select, not []: its gradient is one addition, where that of [] sorts the indices first.
    rows = None if scale is None else scale.index_select(0, packed.item)
    attend = MaskedAttention(packed.slots, visible(packed.blocks))
    hidden = model.llama.run(x, packed.positions, rows, attend)
    return model.llama.logits(hidden.index_select(0, packed.rows))


def answer_loss(logits: Tensor, packed: Packed) -> Tensor:
    """Weighted cross entropy of answers and EOS; no token of an instruction counts."""
    return (F.cross_entropy(logits, packed.targets, reduction="none") * packed.weights).sum()


def right_answers(logits: Tensor, packed: Packed) -> Tensor:
    """[segments] bool: every token of the answer is the likeliest, given the ones before."""
    wrong = (logits.argmax(-1) != packed.targets).float()
    return wrong.new_zeros(packed.num_segments).index_add(0, packed.segment, wrong) == 0


def branch_of(branch: Branch, clips: Ragged) -> Ragged:
    """Encoder rows [F, C] of several clips through one branch at once: [F / 4, output size] each.

    The padding is zeroed between the convolutions, so that each clip gets what it gets alone.
    """
    x = clips.padded().transpose(1, 2)
    lengths = torch.tensor(clips.lengths)
    for convolution in branch.subsampler:
        x = F.glu(convolution(x), dim=1)
        lengths = (lengths - 1) // 2 + 1
        inside = torch.arange(x.shape[2], device=x.device) < lengths.to(x.device)[:, None]
        x = x * inside[:, None]
    out = branch.projector(branch.bottleneck(x.transpose(1, 2)))
    return Ragged.unpadded(out, tuple(lengths.tolist()))


def audio_embeddings(encoder: AudioEncoder, whisper: Ragged, wavlm: Ragged) -> Ragged:
    """Cached encoder outputs of each clip -> its audio embeddings [n, D].

    whisper: [F, d_model] each. wavlm: [F, layers + 1, C] each.
    """
    weights = encoder.wavlm_layer_weights.softmax(0)
    mixed = replace(wavlm, rows=torch.einsum("flc,l->fc", wavlm.rows, weights))
    semantic = branch_of(encoder.whisper_branch, whisper)
    acoustic = branch_of(encoder.wavlm_branch, mixed)
    lengths = tuple(map(min, semantic.lengths, acoustic.lengths))
    both = torch.cat([part.padded()[:, : max(lengths)] for part in (semantic, acoustic)], dim=-1)
    return Ragged.unpadded(encoder.fusion(both), lengths)


class AlignmentLoss(nn.Module):
    """CTC of the transcript over audio embeddings, in which every piece stands where its token embedding is.

    A frame's score for a piece falls with the squared distance from the piece's embedding, and for the blank
    with that from zero. A second loss draws the frames there: what the language model reads is then what it
    read of simulated audio, and it need not learn to listen anew. Belongs to training alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blank = nn.Parameter(torch.tensor(4.0))  # both from where they come to rest
        self.sharpness = nn.Parameter(torch.tensor(10.0))

    def log_probabilities(self, audio: Tensor, embeddings: Tensor) -> Tensor:
        """[..., D] audio, [V, D] token embeddings -> [..., V + 1]; the last one is the blank."""
        # Minus half the squared distance, but for the part that all pieces and the blank have in common.
        nearness = audio @ embeddings.t() - embeddings.square().sum(1) / 2
        blank = self.blank.expand(*nearness.shape[:-1], 1)
        return torch.cat([nearness * self.sharpness, blank], dim=-1).log_softmax(-1)

    def forward(self, audio: Ragged, transcripts: Ragged, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Mean CTC loss per transcript token; mean squared distance of the frames from what they stand for.

        audio: [n, D] of each clip. transcripts: [tokens] int64 of each. The distance is in units of an
        embedding's mean square. No gradient reaches `embeddings`.
        """
        embeddings = embeddings.detach()
        padded = audio.padded().transpose(0, 1)
        scores = self.log_probabilities(padded, embeddings)
        lengths, sizes = torch.tensor(audio.lengths), torch.tensor(transcripts.lengths)
        blank = scores.shape[-1] - 1
        ctc = F.ctc_loss(scores, transcripts.rows, lengths, sizes, blank=blank, zero_infinity=True)
        expected = scores.detach()[..., :-1].exp() @ embeddings
        inside = torch.arange(len(padded), device=padded.device)[:, None] < lengths.to(padded.device)
        distance = ((padded - expected).square().sum(-1) * inside).sum() / len(audio.rows)
        return ctc, distance / embeddings.square().sum(1).mean()


@dataclass(frozen=True, slots=True)
class Turn:
    """Frames (20 ms) start:stop of a clip. changed: said by another voice than the clip's first one."""

    start: int
    stop: int
    changed: bool


class VoiceLoss(nn.Module):
    """Whether the voice is another one than at first, frame by frame, and how the clip is spoken.

    Two linear maps read it off the audio embeddings, as easily as the language model may then. One word of an
    answer says too little of where in the clip to listen. Belongs to training alone.
    """

    def __init__(self, size: int, num_emotions: int) -> None:
        super().__init__()
        self.changed = nn.Linear(size, 1)
        self.emotion = nn.Linear(size, num_emotions)

    def forward(self, audio: Ragged, changed: Tensor, emotions: Tensor) -> Tensor:
        """audio: [n, D] of each of B clips, four frames a row. changed: [sum n] as `turn_labels` gives them.
        emotions: [B] int64, IGNORE where unknown. Mean over rows in turns, and over known emotions.
        """
        spoken = (changed != IGNORE).float()
        judged = self.changed(audio.rows)[:, 0]
        target = changed.clamp(min=0).to(judged.dtype)
        each = F.binary_cross_entropy_with_logits(judged, target, reduction="none")
        loss = (each * spoken).sum() / spoken.sum().clamp(min=1)
        felt = F.cross_entropy(self.emotion(audio.mean()), emotions, ignore_index=IGNORE, reduction="sum")
        out: Tensor = loss + felt / (emotions != IGNORE).sum().clamp(min=1)
        return out


def turn_labels(count: int, turns: Sequence[Turn]) -> Tensor:
    """[count] of rows of four frames each: 1 in a changed voice, 0 in the first one, IGNORE between turns."""
    labels = torch.full((count,), IGNORE)
    for turn in turns:
        labels[turn.start // 4 : -(-turn.stop // 4)] = int(turn.changed)
    return labels


def prompt_scales(model: SpeechLLM, instructions: Ragged) -> Tensor:
    """Adapter ids [tokens] of B instructions -> their scales [B, D]; the LLaMA is read with the LoRA off."""
    return model.prompt_adapter.bounded(raw_scales(model, instructions))


def raw_scales(model: SpeechLLM, instructions: Ragged) -> Tensor:
    """The same [B, D] before they are held between 0 and the largest scale."""
    device = model.device
    lengths = torch.tensor(instructions.lengths, device=device)
    steps = torch.arange(max(instructions.lengths), device=device)
    inside = steps < lengths[:, None]
    causal = (steps <= steps[:, None]).expand(len(lengths), 1, -1, -1)
    positions = steps.expand(len(lengths), -1).flatten().index_select(0, instructions.slots)
    attend = MaskedAttention(instructions.slots, causal)
    with torch.no_grad():
        hidden = model.llama.run(model.llama.embed_tokens(instructions.rows), positions, None, attend)
    return model.prompt_adapter.pooled(replace(instructions, rows=hidden).padded(), inside)


def stray(raw: Tensor, max_scale: float) -> Tensor:
    """Mean distance of raw scales [B, D] from their bounds, for those outside.

    Beyond the bounds no gradient comes back: a channel that has once left them for all instructions stays at
    the bound for good.
    """
    return (F.relu(-raw) + F.relu(raw - max_scale)).mean()
