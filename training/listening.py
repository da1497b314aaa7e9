"""Stages 1 and 2: the adapters, the fusion and the LoRA learn to answer about real (cached) audio.

align    the adapters alone, by CTC
single   stage 1 of the paper: one instruction at a time, the LoRA's scale fixed at 1
joint    stage 2 of the paper: several instructions and chains of thought as well, the scale set by the
         prompt-aware adapter

Other than in the paper the small language model itself goes on learning in both.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from model.config import subsampled_length
from model.speech_llm import SpeechLLM
from training.batch import Item, Packed, Ragged, pack
from training.corpus import FRAME, ClipRecord
from training.dataset import Clip, Dataset, epoch_order
from training.language import draw_tasks
from training.network import (
    IGNORE,
    AlignmentLoss,
    Turn,
    VoiceLoss,
    answer_logits,
    answer_loss,
    audio_embeddings,
    raw_scales,
    right_answers,
    stray,
    train_only,
    turn_labels,
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
ADAPTER_RATE = 0.15
"""Of the prompt adapter. A step of 1e-3 in all its weights moves a scale by 0.3, and these end at 3."""
JOINT_RATES = {
    "audio_encoder.": 0.3, "align.": 0.3, "llama.": 0.1, "lora_": 1.0, "prompt_adapter.": ADAPTER_RATE,
}  # fmt: skip
"""Where the language model moved faster, the prompt adapter came to give every instruction one scale."""
COUNTED = 4.0
"""How much oftener speakers are counted in dialogues, half of which are one voice's, than in other clips."""
MASKED_FRAMES = 8
ABLATED = 0.5
"""Share of clips with a stretch of silence cut into what Whisper heard."""
STRAY = 0.3
"""Weight of scales' distance from their bounds."""
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
    script = Script("chained", spoken, "")
    turns = a.turns + turns_of(second.record, len(a.wavlm), order[0])
    whisper, wavlm = torch.cat([a.whisper, b.whisper]), torch.cat([a.wavlm, b.wavlm])
    return Heard(script, whisper, wavlm, prosody=False, turns=turns)


def tasks_heard(clip: Heard, weights: dict[str, float]) -> dict[str, float]:
    """The weights of tasks, as far as a clip's voices let them be asked."""
    left = dict(weights)
    if not clip.prosody:
        left.pop("emotion", None)
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


@dataclass(frozen=True, slots=True)
class Said:
    """What a batch of B clips is and holds: encoder outputs in float16, transcripts in ids.

    changed: [sum n] of the audio embeddings' rows, as `turn_labels` gives them. emotions: [B] int64.
    """

    whisper: Ragged
    wavlm: Ragged
    transcripts: Ragged
    changed: Tensor
    emotions: Tensor


@dataclass(frozen=True, slots=True)
class Asked:
    """Instructions and answers about the clips of a batch, then some without a clip.

    bare: how many of these there are. adapter: what the prompt adapter reads of each instruction; only where
    the scale is not fixed. asr, sv: [k] int64, segments of these tasks, to be counted apart.
    """

    said: Said
    packed: Packed
    bare: int
    adapter: Ragged | None
    asr: Tensor
    sv: Tensor


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
    hears_voices: bool = True

    def __post_init__(self) -> None:
        self.trained = Listener(self.model)

    def train_only(self, *parts: str) -> None:
        """Freeze all but the semantic adapter, the fusion and `parts`."""
        train_only(self.trained, *ADAPTERS, *parts)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @property
    def acoustic(self) -> tuple[str, ...]:
        """The acoustic adapter's parts, if it is not ablated."""
        return WAVLM_ADAPTERS if self.recipe.use_wavlm else ()

    def said(self, clips: Sequence[Heard], rng: random.Random) -> Said:
        """A batch of clips; some have a stretch of silence cut into what Whisper heard."""
        tokenizer = self.encoder.tokenizer
        counts = [self.num_rows(clip) for clip in clips]
        emotions = [IGNORE if clip.emotion is None else clip.emotion for clip in clips]
        return Said(
            whisper=Ragged.of([masked(clip.whisper, rng) for clip in clips]),
            wavlm=Ragged.of([clip.wavlm for clip in clips]),
            transcripts=Ragged.of([torch.tensor(tokenizer.encode(clip.script.text)) for clip in clips]),
            changed=torch.cat([turn_labels(n, clip.turns) for n, clip in zip(counts, clips, strict=True)]),
            emotions=torch.tensor(emotions),
        )

    def num_rows(self, clip: Heard) -> int:
        """Audio embeddings of a clip."""
        return subsampled_length(min(len(clip.whisper), len(clip.wavlm)))

    def asked(self, said: Said, items: Sequence[Item], bare: int, adapter: Ragged | None) -> Asked:
        """Lay out the items, the last `bare` of which have no clip."""
        tasks = [segment.task for item in items for segment in item.segments]
        asr, sv = (torch.tensor([i for i, name in enumerate(tasks) if name == t]) for t in ("asr", "sv"))
        return Asked(said, pack(items), bare, adapter, asr.long(), sv.long())

    def hear(self, said: Said) -> Ragged:
        """Audio embeddings [n, D] of each clip."""
        dtype = self.model.dtype
        whisper, wavlm = (replace(rows, rows=rows.rows.to(dtype)) for rows in (said.whisper, said.wavlm))
        return audio_embeddings(self.model.audio_encoder, whisper, wavlm)

    def figures(self, asked: Asked, scale: Tensor) -> dict[str, Tensor]:
        """loss of all; ctc, distance: alignment; voices; right: share of answers whose tokens all are.

        scale: [items, D].
        """
        said, packed = asked.said, asked.packed
        audio = self.hear(said)
        logits = answer_logits(self.model, packed, audio.rows, scale)
        aligned = self.aligned(said, audio)
        answers = answer_loss(logits, packed)
        voices = self.trained.voices(audio, said.changed, said.emotions)
        alignment = self.recipe.ctc * (aligned["ctc"] + DISTANCE * aligned["distance"])
        right = right_answers(logits.detach(), packed).float()
        apart = {"asr": right.index_select(0, asked.asr), "sv": right.index_select(0, asked.sv)}
        return {
            "loss": answers + alignment + VOICES * voices,
            "answers": answers,
            "voices": voices,
            **aligned,
            "right": right.mean(),
            **{task: share.mean() for task, share in apart.items() if len(share)},
        }

    def aligned(self, said: Said, audio: Ragged) -> dict[str, Tensor]:
        """ctc, distance: of the clips' transcripts and their audio embeddings."""
        embeddings = self.model.llama.embed_tokens.weight
        ctc, distance = self.trained.align(audio, said.transcripts, embeddings)
        return {"ctc": ctc, "distance": distance}

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

    The acoustic adapter rests. One that has learnt nothing is silent until stage 1 (hears_voices: false), for
    the fusion would make it say more of what is said. Without the language model a clip costs a quarter.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name = "align"
        self.budget = self.recipe.align
        self.rates: dict[str, float] = {"align.": 10.0}  # two numbers, in units of their own
        self.train_only(*(("voices.",) if self.hears_voices else ()))

    def batch(self, step: int) -> Said:
        """Clips, no instructions."""
        rng = random.Random(f"{self.recipe.seed}/align/{step}")
        return self.said(self.clips(step, self.budget.batch, rng), rng)

    def losses(self, batch: Said) -> dict[str, Tensor]:
        """loss; ctc, distance: the two parts of the alignment loss; voices, where they are heard."""
        audio = self.hear(batch)
        figures = self.aligned(batch, audio)
        loss = figures["ctc"] + DISTANCE * figures["distance"]
        if self.hears_voices:
            figures["voices"] = self.trained.voices(audio, batch.changed, batch.emotions)
            loss = loss + VOICES * figures["voices"]
        return {"loss": loss, **figures}


class SingleStage(ListeningStage):
    """Stage 1."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name = "single"
        self.budget = self.recipe.single
        self.rates = SINGLE_RATES
        self.train_only("llama.", "voices.", *self.acoustic)

    def batch(self, step: int) -> Asked:
        """Several single tasks about each clip."""
        rng = random.Random(f"{self.recipe.seed}/single/{step}")
        clips = self.clips(step, self.budget.batch, rng)
        said = self.said(clips, rng)
        items = []
        for clip in clips:
            tasks = draw_tasks(clip.script, self.budget.segments, tasks_heard(clip, WEIGHTS), rng)
            segments = tuple(self.segment(task, clip.script, rng) for task in tasks)
            items.append(Item(self.encoder.left, self.num_rows(clip), segments))
        bare = [self.bare(rng, clip.script) for clip in clips if rng.random() < BARE_SHARE]
        return self.asked(said, [*items, *bare], len(bare), None)

    def losses(self, batch: Asked) -> dict[str, Tensor]:
        """The scale at 1, and at 0 where there is no clip."""
        count = len(batch.said.emotions)
        size = self.model.config.llama.hidden_size
        scale = torch.zeros(count + batch.bare, size, dtype=self.model.dtype, device=self.device)
        scale[:count] = 1
        return self.figures(batch, scale)


class JointStage(ListeningStage):
    """Stage 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name = "joint"
        self.budget = self.recipe.joint
        self.rates = JOINT_RATES
        self.train_only("llama.", "voices.", *self.acoustic, *self.adapter)

    @property
    def adapter(self) -> tuple[str, ...]:
        """The prompt-aware adapter, if it is not ablated."""
        return ("prompt_adapter.",) if self.recipe.use_prompt_adapter else ()

    def batch(self, step: int) -> Asked:
        """One instruction a clip, single or composed."""
        rng = random.Random(f"{self.recipe.seed}/joint/{step}")
        clips = self.clips(step, self.budget.batch, rng)
        said = self.said(clips, rng)
        segments = [self.segment(self._task(clip, rng), clip.script, rng) for clip in clips]
        items = [
            Item(self.encoder.left, self.num_rows(clip), (segment,))
            for clip, segment in zip(clips, segments, strict=True)
        ]
        adapter = Ragged.of([torch.tensor(segment.adapter) for segment in segments])
        bare = [self.bare(rng, clip.script) for clip in clips if rng.random() < BARE_SHARE]
        return self.asked(said, [*items, *bare], len(bare), adapter)

    def losses(self, batch: Asked) -> dict[str, Tensor]:
        """Each instruction's scale from the adapter, 0 where there is no clip.

        spread: of a channel's scales between instructions.
        """
        assert batch.adapter is not None
        raw = raw_scales(self.model, batch.adapter)
        scale = self.model.prompt_adapter.bounded(raw)
        figures = self.figures(batch, torch.cat([scale, scale.new_zeros(batch.bare, scale.shape[1])]))
        figures["loss"] = figures["loss"] + STRAY * stray(raw, self.model.prompt_adapter.max_scale)
        return {**figures, "spread": scale.detach().std(dim=0).mean()}

    def _task(self, clip: Heard, rng: random.Random) -> str:
        weights = WEIGHTS if rng.random() < self.recipe.single_share else COMPOSED
        able = tasks_for(clip.script)
        left = {task: w for task, w in tasks_heard(clip, weights).items() if task in able}
        return rng.choices(list(left), list(left.values()))[0]


class OneStage(JointStage):
    """In place of stage 1, to compare with: all tasks at once, as in stage 2."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name = "single"
        single = self.recipe.single
        self.budget = replace(self.recipe.joint, steps=single.steps, learning_rate=single.learning_rate)
        self.rates = {**SINGLE_RATES, "prompt_adapter.": ADAPTER_RATE}
