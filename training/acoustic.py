"""Stage 0, hearing: the small WavLM learns who speaks and how, on pairs of utterances.

It stands for the pre-trained WavLM of the paper, with labels in place of masked prediction, for the clips are
ours and their voices known: which voice (frames of one utterance pooled), whether a frame's voice differs
from the clip's first one, and how it is spoken.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.audio_encoder import AudioEncoder
from model.config import SAMPLE_RATE
from model.pieces import finish
from model.wavlm_encoder import WavLMTransformer
from training.augment import Waveform, augment, change_speed
from training.corpus import FRAME, PEAK, ClipRecord, read_manifest
from training.network import IGNORE
from training.recipe import Recipe, State
from training.scripts import EMOTIONS

CROP_SECONDS = 3.2
PIECE_SECONDS = (1.0, 1.9)
GAP_SECONDS = (0.08, 0.35)
SPEEDS = (0.8, 0.9, 1.0, 1.1, 1.2)
"""A voice played faster or slower counts as another one: few synthetic voices become many."""
WARPED = 0.6
HARD = 0.15
"""Pairs of one voice at two speeds: they differ in pitch and formants alone."""
SPEAKER_LAYER = 2
"""Where the voice is read off; the layers above are free to compare voices."""
AUGMENTED = 0.3


@dataclass(frozen=True, slots=True)
class Utterance:
    """One line of a clip. samples: int16, memory-mapped."""

    samples: np.ndarray
    speaker: str
    emotion: int


@dataclass(frozen=True, slots=True)
class Voice:
    """A speaker of the corpus, and the number of the speed in SPEEDS at which it is played."""

    speaker: str
    speed: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Two utterances one after the other. wave: [CROP_SECONDS] float32. piece: [F] 0, 1, or IGNORE between.

    same: whether one voice says both. speakers, emotions: of the two; IGNORE where unknown.
    """

    wave: np.ndarray
    piece: np.ndarray
    same: bool
    speakers: tuple[int, int]
    emotions: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Pairs:
    """B pairs. waves: [B, T] float32. pieces: [B, F]. same: [B] bool. speakers, emotions: [2 B] int64."""

    waves: Tensor
    pieces: Tensor
    same: Tensor
    speakers: Tensor
    emotions: Tensor

    @classmethod
    def of(cls, pairs: Sequence[Pair]) -> Pairs:
        """Stack them."""
        return cls(
            torch.from_numpy(np.stack([p.wave for p in pairs])),
            torch.from_numpy(np.stack([p.piece for p in pairs])),
            torch.tensor([p.same for p in pairs]),
            torch.tensor([p.speakers for p in pairs]).flatten(),
            torch.tensor([p.emotions for p in pairs]).flatten(),
        )


class Utterances:
    """All lines of the training clips, by voice."""

    def __init__(self, state: State) -> None:
        self.by_speaker: dict[str, list[Utterance]] = defaultdict(list)
        folder = state.shards("speech", "train")
        for manifest in sorted(folder.glob("*.jsonl")):
            samples = np.load(manifest.with_suffix(".npy"), mmap_mode="r")
            for record in read_manifest(manifest):
                self._add(record, samples[record.offset : record.offset + record.num_samples])
        self.speakers = sorted(self.by_speaker)
        self._numbers = {speaker: number for number, speaker in enumerate(self.speakers)}

    def _add(self, record: ClipRecord, samples: np.ndarray) -> None:
        emotion = EMOTIONS.index(record.script.emotion) if record.prosody else IGNORE
        for line, (start, stop) in zip(record.script.lines, record.played_spans, strict=True):
            piece = samples[start:stop]
            if len(piece) > SAMPLE_RATE // 2:
                speaker = record.voices[line.speaker]
                self.by_speaker[speaker].append(Utterance(piece, speaker, emotion))

    def pair(self, rng: random.Random) -> Pair:
        """Two utterances: half of the time of one voice, else of two voices, most of them of one engine."""
        first = Voice(rng.choice(self.speakers), self._speed(rng))
        second = first if rng.random() < 0.5 else self._other(first, rng)
        said = [rng.choice(self.by_speaker[voice.speaker]) for voice in (first, second)]
        waves = [play(u, SPEEDS[v.speed], rng) for u, v in zip(said, (first, second), strict=True)]
        wave, piece = join(waves, rng)
        if rng.random() < AUGMENTED:
            wave = augment(wave, np.random.default_rng(rng.getrandbits(32)), rng.uniform(0.1, 0.7))
            wave = np.resize(wave, len(piece) * FRAME)
        emotions = [
            u.emotion if SPEEDS[v.speed] == 1 else IGNORE for u, v in zip(said, (first, second), strict=True)
        ]
        numbers = (self._number(first), self._number(second))
        return Pair(wave, piece, first == second, numbers, (emotions[0], emotions[1]))

    @property
    def num_voices(self) -> int:
        """Speakers times speeds."""
        return len(self.speakers) * len(SPEEDS)

    def _number(self, voice: Voice) -> int:
        return self._numbers[voice.speaker] * len(SPEEDS) + voice.speed

    def _speed(self, rng: random.Random) -> int:
        return rng.randrange(len(SPEEDS)) if rng.random() < WARPED else SPEEDS.index(1.0)

    def _other(self, voice: Voice, rng: random.Random) -> Voice:
        if rng.random() < HARD / 0.5:
            return Voice(voice.speaker, rng.choice([n for n in range(len(SPEEDS)) if n != voice.speed]))
        engine = voice.speaker.partition("/")[0]
        others = [name for name in self.speakers if name != voice.speaker]
        alike = [name for name in others if name.startswith(engine)]
        return Voice(rng.choice(alike or others), self._speed(rng))


def play(utterance: Utterance, speed: float, rng: random.Random) -> Waveform:
    """A stretch of at most CROP_SECONDS, `speed` times as fast."""
    samples = utterance.samples
    length = min(round(CROP_SECONDS * SAMPLE_RATE * speed), len(samples))
    offset = rng.randint(0, len(samples) - length)
    wave = samples[offset : offset + length].astype(np.float32) / np.float32(PEAK)
    return wave if speed == 1 else change_speed(wave, speed)


def join(waves: Sequence[Waveform], rng: random.Random) -> tuple[Waveform, np.ndarray]:
    """[CROP_SECONDS * 16000] samples of two waves, and for each frame the number of its wave."""
    frames = round(CROP_SECONDS * SAMPLE_RATE) // FRAME
    out = np.zeros(frames * FRAME, np.float32)
    piece = np.full(frames, IGNORE)
    start = rng.randint(0, 5)
    for number, wave in enumerate(waves):
        length = min(round(rng.uniform(*PIECE_SECONDS) * SAMPLE_RATE), len(wave))
        if number == 1:
            length = min(len(wave), (frames - start) * FRAME)
        out[start * FRAME : start * FRAME + length] = wave[:length] * rng.uniform(0.6, 1.4)
        piece[start : start + length // FRAME] = number
        start += length // FRAME + round(rng.uniform(*GAP_SECONDS) * SAMPLE_RATE) // FRAME
    return out, piece


class Heads(nn.Module):
    """What only this stage reads off the network."""

    def __init__(self, size: int, num_voices: int) -> None:
        super().__init__()
        self.speaker = nn.Linear(size, num_voices)
        self.changed = nn.Linear(size, 1)
        self.emotion = nn.Linear(size, len(EMOTIONS))


class Hearing(nn.Module):
    """WavLM and the heads, under names that fit the audio encoder's."""

    def __init__(self, encoder: AudioEncoder, num_voices: int) -> None:
        super().__init__()
        self.wavlm = encoder.wavlm
        self.heads = Heads(encoder.wavlm.config.hidden_size, num_voices)

    def states(self, waves: Tensor) -> list[Tensor]:
        """[B, T] of one length -> all layers' outputs [B, F, C]."""
        hidden = self.wavlm.feature_projection(self.wavlm.feature_extractor(waves))
        return finish(WavLMTransformer(self.wavlm)(hidden, [hidden.shape[1]] * len(hidden)))


@dataclass
class AcousticStage:
    """Trains all of WavLM."""

    encoder: AudioEncoder
    recipe: Recipe
    state: State
    device: torch.device

    def __post_init__(self) -> None:
        self.name = "acoustic"
        self.budget = self.recipe.acoustic
        self.rates: dict[str, float] = {}
        self.utterances = Utterances(self.state)
        self.encoder.requires_grad_(False)
        self.trained = Hearing(self.encoder, self.utterances.num_voices).to(self.device)
        self.trained.requires_grad_(True)

    def batch(self, step: int) -> Pairs:
        """Pairs of utterances."""
        rng = random.Random(f"{self.recipe.seed}/acoustic/{step}")
        return Pairs.of([self.utterances.pair(rng) for _ in range(self.budget.batch)])

    def losses(self, batch: Pairs) -> dict[str, Tensor]:
        """loss; voice: share of voices named right; changed: of frames judged right; how: of emotions."""
        states = self.trained.states(batch.waves)
        pieces = batch.pieces[:, : states[0].shape[1]]
        inside = torch.stack([pieces == 0, pieces == 1], dim=1).float()
        heads = self.trained.heads
        voice = heads.speaker(pooled(states[SPEAKER_LAYER], inside)).flatten(0, 1)
        how = heads.emotion(pooled(states[-1], inside)).flatten(0, 1)
        changed = heads.changed(states[-1])[..., 0]
        target = ((pieces == 1) & ~batch.same[:, None]).float()
        heard = (pieces != IGNORE).float() * torch.where(pieces == 1, 2.0, 1.0)
        judged = F.binary_cross_entropy_with_logits(changed, target, heard, reduction="sum") / heard.sum()
        named = F.cross_entropy(voice, batch.speakers)
        felt = F.cross_entropy(how, batch.emotions, ignore_index=IGNORE)
        second = (pieces == 1).float()
        right = (((changed > 0) == (target > 0)).float() * second).sum() / second.sum().clamp(min=1)
        known = (batch.emotions != IGNORE).float()
        felt_right = ((how.argmax(-1) == batch.emotions) * known).sum() / known.sum().clamp(min=1)
        return {
            "loss": named + 2 * judged + felt,
            "voice": (voice.argmax(-1) == batch.speakers).float().mean(),
            "changed": right,
            "how": felt_right,
        }


def pooled(hidden: Tensor, inside: Tensor) -> Tensor:
    """[B, F, C] averaged over the frames of each piece, inside [B, 2, F] -> [B, 2, C]."""
    total = inside.sum(-1, keepdim=True).clamp(min=1)
    return inside @ hidden / total
