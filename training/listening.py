"""Stages 1 and 2: the adapters, the fusion and the LoRA learn to answer about real (cached) audio.

align    the adapters alone, by CTC
single   stage 1 of the paper: one instruction at a time, the LoRA's scale fixed at 1
joint    stage 2 of the paper: several instructions and chains of thought as well, the scale set by the
         prompt-aware adapter
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from model.speech_llm import SpeechLLM
from training.batch import Item, Packed, pack
from training.corpus import FRAME, ClipRecord
from training.dataset import Clip, Dataset, epoch_order
from training.language import draw_tasks
from training.network import (
    AlignmentLoss,
    Turn,
    VoiceLoss,
    answer_logits,
    answer_loss,
    audio_embeddings,
    prompt_scales,
    right_answers,
    train_only,
)
from training.recipe import Recipe
from training.scripts import EMOTIONS, Script
from training.tasks import make_example, tasks_for
from training.tokens import Encoder, Segment

ADAPTERS = (
    "audio_encoder.whisper_branch",
    "audio_encoder.fusion",
    "align.",
)
WAVLM_ADAPTERS = ("audio_encoder.wavlm_branch", "audio_encoder.wavlm_layer_weights")
WEIGHTS = {
    "asr": 3.0, "en2de": 3.5, "sv": 1.0, "emotion": 1.5, "sqa": 2.0, "content": 1.5, "sqqa": 3.0,
    "summary": 1.2, "text": 0.5, "refusal": 0.6,
}  # fmt: skip
COMPOSED = {"ii": 1.0, "cot": 1.0}
BARE_SHARE = 0.06
"""Items without audio and with the LoRA off, so that the language model alone stays what it was."""
CHAINED_SHARE = 0.12
"""Clips that another clip follows, so that longer recordings are met too."""
DISTANCE = 0.15
"""Weight of the frames' distance from what they stand for, beside CTC. At 1 they hardly left the blank."""
SINGLE_RATES = {"audio_encoder.": 0.2, "wavlm": 1.0, "align.": 0.2, "llama.": 0.5, "lora_": 1.0}
"""What is said has been learnt in `align`, who says it has not."""
COUNTED = 4.0
"""How much oftener speakers are counted in dialogues, half of which are one voice's, than in other clips."""
MASKED_FRAMES = 8
ABLATED = 0.5
"""Share of clips with a stretch of silence cut into what Whisper heard."""
VOICES = 0.3
"""Weight of telling voices and ways of speaking from the audio embeddings themselves."""


@dataclass(frozen=True, slots=True)
class Heard:
    """What the encoders made of a clip (whisper [F, d], wavlm [F, layers + 1, C]) and what is known of it."""

    script: Script
    whisper: Tensor
    wavlm: Tensor
    prosody: bool
    turns: tuple[Turn, ...]

    @property
    def emotion(self) -> int | None:
        """Number of its emotion, if the voices can show one."""
        return EMOTIONS.index(self.script.emotion) if self.prosody else None


def heard(data: Dataset, clip: Clip, acoustic: bool = True) -> Heard:
    """One clip of the cache. acoustic: false spares reading what WavLM made of it."""
    record = clip.record
    wavlm = data.wavlm(clip) if acoustic else data.silence(clip)
    return Heard(record.script, data.whisper(clip), wavlm, record.prosody, turns_of(record))


def turns_of(record: ClipRecord, frame: int = 0, first: str | None = None) -> tuple[Turn, ...]:
    """Who speaks when, for a clip that begins at `frame`, after one that began with the voice `first`."""
    names = [record.voices[line.speaker] for line in record.script.lines]
    return tuple(
        Turn(frame + start // FRAME, frame + stop // FRAME, name != (first or names[0]))
        for name, (start, stop) in zip(names, record.played_spans, strict=True)
    )


def chained(data: Dataset, first: Clip, second: Clip, acoustic: bool = True) -> Heard:
    """Two clips one after the other, as one; who speaks is told by the voices."""
    a, b = heard(data, first, acoustic), heard(data, second, acoustic)
    names = [
        clip.record.voices[line.speaker] for clip in (first, second) for line in clip.record.script.lines
    ]
    order = list(dict.fromkeys(names))
    lines = (*a.script.lines, *b.script.lines)
    spoken = tuple(replace(line, speaker=order.index(name)) for line, name in zip(lines, names, strict=True))
    script = Script("chained", spoken, "neutral")
    turns = a.turns + turns_of(second.record, len(a.wavlm), order[0])
    whisper, wavlm = torch.cat([a.whisper, b.whisper]), torch.cat([a.wavlm, b.wavlm])
    return Heard(script, whisper, wavlm, prosody=False, turns=turns)


def tasks_heard(clip: Heard, weights: dict[str, float]) -> dict[str, float]:
    """The weights of tasks that can be asked of a clip; counting speakers stops at two."""
    left = dict(weights)
    if not clip.prosody:
        left.pop("emotion", None)
    if clip.script.speakers > 2:
        left.pop("sv", None)
    if "sv" in left and clip.script.kind == "dialogue":
        left["sv"] *= COUNTED
    return left


def masked(rows: Tensor, rng: random.Random) -> Tensor:
    """Whisper frames [F, d] with a short stretch zeroed, now and then."""
    if rng.random() >= ABLATED or len(rows) < 4 * MASKED_FRAMES:
        return rows
    length = rng.randint(1, MASKED_FRAMES)
    start = rng.randint(0, len(rows) - length)
    rows = rows.clone()
    rows[start : start + length] = 0
    return rows


class Listener(nn.Module):
    """The network and the losses with weights of their own under one roof; names fit SpeechLLM's."""

    def __init__(self, model: SpeechLLM) -> None:
        super().__init__()
        self.audio_encoder = model.audio_encoder
        self.prompt_adapter = model.prompt_adapter
        self.llama = model.llama
        self.align = AlignmentLoss().to(model.device)
        self.voices = VoiceLoss(model.config.llama.hidden_size, len(EMOTIONS)).to(model.device)


@dataclass
class ListeningStage:
    """What both stages share: clips in, losses out."""

    model: SpeechLLM
    encoder: Encoder
    recipe: Recipe
    data: Dataset
    hears_voices: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.trained = Listener(self.model)

    def train_only(self, *parts: str) -> None:
        """Freeze all but the semantic adapter, the fusion and `parts`."""
        train_only(self.trained, *ADAPTERS, *parts)

    @property
    def acoustic(self) -> tuple[str, ...]:
        """The acoustic adapter's parts, if it is not ablated."""
        return WAVLM_ADAPTERS if self.recipe.use_wavlm else ()

    def hear(self, clips: Sequence[Heard], rng: random.Random, learn: bool = True) -> list[Tensor]:
        """Audio embeddings [n, D] of each clip."""
        device = self.model.device
        whisper = [masked(clip.whisper, rng) if learn else clip.whisper for clip in clips]
        return audio_embeddings(
            self.model.audio_encoder,
            [rows.to(device) for rows in whisper],
            [clip.wavlm.to(device) for clip in clips],
        )

    def figures(
        self, clips: Sequence[Heard], audio: Sequence[Tensor], items: Sequence[Item], scale: Tensor
    ) -> dict[str, Tensor]:
        """loss of all; ctc, distance: alignment; voices; right: share of answers whose tokens all are.

        items: those of the clips, then those without audio. scale: [items, D].
        """
        packed = pack(items, self.model.device)
        logits = answer_logits(self.model, packed, torch.cat(list(audio)), scale)
        aligned = self.aligned(clips, audio)
        answers = answer_loss(logits, packed)
        voices = self.trained.voices(audio, [c.turns for c in clips], [c.emotion for c in clips])
        alignment = self.recipe.ctc * (aligned["ctc"] + DISTANCE * aligned["distance"])
        return {
            "loss": answers + alignment + VOICES * voices,
            "answers": answers,
            "voices": voices,
            **aligned,
            **self._right(logits.detach(), packed, items),
        }

    def aligned(self, clips: Sequence[Heard], audio: Sequence[Tensor]) -> dict[str, Tensor]:
        """ctc, distance: of the clips' transcripts and their audio embeddings."""
        transcripts = [self.encoder.tokenizer.encode(clip.script.text) for clip in clips]
        ctc, distance = self.trained.align(audio, transcripts, self.model.llama.embed_tokens.weight)
        return {"ctc": ctc, "distance": distance}

    def _right(self, logits: Tensor, packed: Packed, items: Sequence[Item]) -> dict[str, Tensor]:
        right = right_answers(logits, packed).float()
        tasks = [segment.task for item in items for segment in item.segments]
        shown = {"right": right.mean()}
        for task in ("asr", "sv"):
            chosen = [i for i, name in enumerate(tasks) if name == task]
            if chosen:
                shown[task] = right[chosen].mean()
        return shown

    def clips(self, step: int, batch: int, rng: random.Random) -> list[Heard]:
        """The clips of a step, some chained."""
        name = f"{self.recipe.seed}/{type(self).__name__}"
        order = epoch_order(len(self.data), name, step, batch)
        clips = [self.data.clips[i] for i in order]
        return [
            chained(self.data, clip, rng.choice(clips), self.hears_voices)
            if rng.random() < CHAINED_SHARE
            else heard(self.data, clip, self.hears_voices)
            for clip in clips
        ]

    def segment(self, task: str, script: Script, rng: random.Random, audio: bool = True) -> Segment:
        """One example in ids, in a phrasing of the training set."""
        return self.encoder.segment(make_example(task, script, rng, "train"), audio)

    def bare(self, rng: random.Random, script: Script) -> Item:
        """An instruction to the language model alone."""
        return Item((), 0, (self.segment(rng.choice(("text", "refusal")), script, rng, audio=False),))


class AlignStage(ListeningStage):
    """Before stage 1: the semantic adapter and the fusion learn, by alignment alone, to write what is heard.

    The acoustic adapter is silent until stage 1: CTC would fill it with more of what is said. Without the
    language model a clip costs a quarter.
    """

    hears_voices = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name = "align"
        self.budget = self.recipe.align
        self.rates: dict[str, float] = {"align.": 10.0}  # two numbers, in units of their own
        self.train_only()

    def losses(self, step: int) -> dict[str, Tensor]:
        """loss; ctc, distance: the two parts of the alignment loss."""
        rng = random.Random(f"{self.recipe.seed}/align/{step}")
        clips = self.clips(step, self.budget.batch, rng)
        aligned = self.aligned(clips, self.hear(clips, rng))
        return {"loss": aligned["ctc"] + DISTANCE * aligned["distance"], **aligned}


class SingleStage(ListeningStage):
    """Stage 1. Beside the adapters and the LoRA the small language model itself goes on learning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name = "single"
        self.budget = self.recipe.single
        self.rates = SINGLE_RATES
        self.train_only("llama.", "voices.", *self.acoustic)

    def losses(self, step: int) -> dict[str, Tensor]:
        """Several single tasks about each clip, the scale at 1."""
        rng = random.Random(f"{self.recipe.seed}/single/{step}")
        clips = self.clips(step, self.budget.batch, rng)
        audio = self.hear(clips, rng)
        items = []
        for clip, rows in zip(clips, audio, strict=True):
            tasks = draw_tasks(clip.script, self.budget.segments, tasks_heard(clip, WEIGHTS), rng)
            segments = tuple(self.segment(task, clip.script, rng) for task in tasks)
            items.append(Item(self.encoder.left, len(rows), segments))
        bare = [self.bare(rng, clip.script) for clip in clips if rng.random() < BARE_SHARE]
        size = self.model.config.llama.hidden_size
        ones = torch.ones(len(items), size, device=self.model.device)
        return self.figures(clips, audio, [*items, *bare], torch.cat([ones, ones.new_zeros(len(bare), size)]))


class JointStage(ListeningStage):
    """Stage 2: the language model rests; adapters, LoRA and the prompt-aware adapter learn."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name = "joint"
        self.budget = self.recipe.joint
        self.rates = {"audio_encoder.": 0.3, "align.": 0.3, "prompt_adapter.": 2.0}
        self.train_only("lora_", "voices.", *self.acoustic, *self.adapter)

    @property
    def adapter(self) -> tuple[str, ...]:
        """The prompt-aware adapter, if it is not ablated."""
        return ("prompt_adapter.",) if self.recipe.use_prompt_adapter else ()

    def losses(self, step: int) -> dict[str, Tensor]:
        """One instruction a clip, single or composed; its scale from the adapter."""
        rng = random.Random(f"{self.recipe.seed}/joint/{step}")
        clips = self.clips(step, self.budget.batch, rng)
        audio = self.hear(clips, rng)
        segments = [self.segment(self._task(clip, rng), clip.script, rng) for clip in clips]
        items = [
            Item(self.encoder.left, len(rows), (segment,))
            for rows, segment in zip(audio, segments, strict=True)
        ]
        scale = prompt_scales(self.model, [segment.adapter for segment in segments])
        return self.figures(clips, audio, items, scale)

    def _task(self, clip: Heard, rng: random.Random) -> str:
        weights = WEIGHTS if rng.random() < self.recipe.single_share else COMPOSED
        able = tasks_for(clip.script)
        left = {task: w for task, w in tasks_heard(clip, weights).items() if task in able}
        return rng.choices(list(left), list(left.values()))[0]


class OneStage(JointStage):
    """In place of stage 1, to compare with: all tasks at once, as in stage 2; the language model learns."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name = "single"
        single = self.recipe.single
        self.budget = replace(self.recipe.joint, steps=single.steps, learning_rate=single.learning_rate)
        self.rates = {**SINGLE_RATES, "prompt_adapter.": 2.0}
        self.train_only("llama.", "voices.", *self.acoustic, *self.adapter)
