"""Stage 0, language: the small LLaMA learns English, German and the tasks from text.

It stands for the pre-trained LLaMA-2 of the paper. In place of a clip it reads simulated audio: the
transcript's own token embeddings, spread out in time, with gaps, noise and mishearings.

copy      transcripts alone: to write down what is heard is the slowest thing to learn, and all else needs it
language  every task that text can teach
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.speech_llm import SpeechLLM
from training.batch import Item, Packed, pack
from training.corpus import draw, draw_kind
from training.network import answer_logits, answer_loss, right_answers, train_only
from training.recipe import KINDS, Recipe
from training.scripts import Script, draw_script
from training.sentences import ordinary_sentences
from training.tasks import make_example, tasks_for
from training.tokens import Encoder, Segment

UNHEARD = frozenset({"sv", "emotion"})
"""Tasks that text cannot teach."""
WEIGHTS = {
    "asr": 3.0, "en2de": 3.5, "sqa": 3.0, "content": 1.5, "sqqa": 3.0, "summary": 1.5,
    "cot": 1.5, "ii": 1.0, "text": 0.7, "refusal": 0.8,
}  # fmt: skip
TEXT_KINDS = {
    "everyday": 0.5, "ordinary": 0.13, "dialogue": 0.14, "story": 0.08, "question": 0.1, "digits": 0.05,
}  # fmt: skip
"""Share of each kind of simulated clip in `language`: German comes from everyday sentences alone."""
BARE_SHARE = 0.25
"""Items without any clip: instructions to the language model alone."""
BARE = {"text": 0.2, "refusal": 0.2, "find": 0.6}
"""Their tasks."""
BLANK = -1
MISHEARD = 0.04
EASIEST = 0.3
"""Simulated clips differ: the share of what can go wrong that does is between this and 1."""
RAMP = 0.5
"""Of the steps of `copy`, at the start, over which it gets as hard as it is then."""


def simulate(ids: Sequence[int], rng: random.Random, vocab_size: int, hardness: float = 1.0) -> list[int]:
    """Token ids -> what an aligned encoder would hear: ids, repeated ids and BLANKs, 80 ms each.

    hardness: 0 gives the ids one after the other, 1 all of the gaps and mishearings.
    """
    heard: list[int] = [BLANK] * rng.randint(0, 3)
    for token in ids:
        if rng.random() < MISHEARD * hardness:
            token = rng.choice((BLANK, rng.randrange(3, vocab_size)))
        if rng.random() < hardness:
            heard += [token] * rng.choice((1, 1, 1, 2)) + [BLANK] * rng.choice((0, 1, 1, 2, 3, 4))
        else:
            heard.append(token)
    return heard + [BLANK] * rng.randint(0, 4)


def draw_tasks(script: Script, count: int, weights: dict[str, float], rng: random.Random) -> list[str]:
    """Up to `count` different tasks that fit a clip, by weight."""
    left = {task: weights[task] for task in tasks_for(script) if task in weights}
    chosen: list[str] = []
    while left and len(chosen) < count:
        task = rng.choices(list(left), list(left.values()))[0]
        chosen.append(task)
        del left[task]
    return chosen


@dataclass(frozen=True, slots=True)
class Read:
    """A batch of text. heard: [n] int64 ids and BLANKs of the simulated clips, which are so hard to hear."""

    packed: Packed
    heard: Tensor
    hardness: float


@dataclass
class LanguageStage:
    """Trains token embeddings, decoder and head; the LoRA stays off."""

    model: SpeechLLM
    encoder: Encoder
    recipe: Recipe

    def __post_init__(self) -> None:
        self.name = "language"
        self.budget = self.recipe.language
        self.weights = WEIGHTS
        self.kinds = TEXT_KINDS
        self.bare_share = BARE_SHARE
        self.rates: dict[str, float] = {}
        self.trained = self.model.llama
        self.sentences = ordinary_sentences("train")
        train_only(self.model, "llama.")
        for name, parameter in self.model.llama.named_parameters():
            if "lora_" in name:
                parameter.requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def batch(self, step: int) -> Read:
        """Simulated clips and tasks about them."""
        rng = random.Random(f"{self.recipe.seed}/language/{step}")
        items, heard = [], []
        for _ in range(self.budget.batch):
            bare = rng.random() < self.bare_share
            item, tokens = self._bare(rng) if bare else self._item(rng, self.hardness(step))
            items.append(item)
            heard += tokens
        return Read(pack(items), torch.tensor(heard, dtype=torch.long), self.hardness(step))

    def losses(self, batch: Read) -> dict[str, Tensor]:
        """loss: answers; right: share of answers without a wrong token."""
        audio = self._embed(batch.heard, batch.hardness)
        logits = answer_logits(self.model, batch.packed, audio, None)
        right = right_answers(logits.detach(), batch.packed).float().mean()
        return {"loss": answer_loss(logits, batch.packed), "right": right}

    def hardness(self, step: int) -> float:
        """Of the simulated audio, at most."""
        return 1.0

    def _item(self, rng: random.Random, hardness: float) -> tuple[Item, list[int]]:
        script = draw(rng, draw_kind(rng, self.kinds), "train", self.sentences)
        ids = self.encoder.tokenizer.encode(script.text)
        heard = simulate(ids, rng, self.recipe.vocab_size, hardness * rng.uniform(EASIEST, 1))
        tasks = draw_tasks(script, self.budget.segments, self.weights, rng)
        segments = tuple(self.encoder.segment(make_example(task, script, rng, "train")) for task in tasks)
        return Item(self.encoder.left, len(heard), segments), heard

    def _bare(self, rng: random.Random) -> tuple[Item, list[int]]:
        """A few instructions without a clip: facts, refusals, the letters of options."""
        segments: list[Segment] = []
        for _ in range(self.budget.segments):
            task = rng.choices(list(BARE), list(BARE.values()))[0]
            script = draw_script("story" if task == "find" else "question", rng, "train")
            segments.append(self.encoder.segment(make_example(task, script, rng, "train"), audio=False))
        return Item((), 0, tuple(segments)), []

    def _embed(self, ids: Tensor, hardness: float) -> Tensor:
        """[n, D]: token embeddings, zeros for BLANK, all with noise of a strength that varies."""
        rows: Tensor = self.model.llama.embed_tokens(ids.clamp(min=0)).detach() * (ids >= 0)[:, None]
        strength = hardness * (torch.rand((), device=rows.device) * 0.4 + 0.05)
        noise = torch.randn_like(rows) * strength * rows.shape[1] ** -0.5
        return rows.add(noise)


class CopyStage(LanguageStage):
    """Transcripts alone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.name = "copy"
        self.budget = self.recipe.copy
        self.weights = {"asr": 1.0}
        self.kinds = KINDS
        self.bare_share = 0.0

    def hardness(self, step: int) -> float:
        """Grows from 0 to 1, then stays."""
        return min(1.0, step / (RAMP * self.budget.steps))
