"""The default's own vocabulary, and what of an example the network reads and what it must say."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from model.config import LlamaConfig
from model.prompt import SYSTEM, build_prompt
from model.tokenizer import Tokenizer
from training.recipe import KINDS
from training.scripts import draw_script
from training.sentences import ordinary_sentences
from training.tasks import CHOICES, LETTER, Example, make_example, tasks_for

SPACE = "\u2581"
"""SentencePiece's mark for a space."""
SYMBOLS = (
    "[INST]<<SYS>>\n",
    SYSTEM.replace(" ", SPACE),
    "\n<</SYS>>\n\n",
    "<SPEECH>",
    "</SPEECH>",
    "[/INST]",
)
"""One token each, the whole system text included: 5 tokens in front of a clip instead of 50."""
VOCABULARY_SCRIPTS = 12_000
VOCABULARY_SENTENCES = 20_000


def vocabulary_texts(seed: int) -> Iterator[str]:
    """What the pieces are counted in: instructions, answers, German, ordinary sentences."""
    rng = random.Random(f"{seed}/vocabulary")
    kinds = [kind for kind in KINDS if kind != "ordinary"]
    for _ in range(VOCABULARY_SCRIPTS):
        script = draw_script(rng.choice(kinds), rng, "train")
        example = make_example(rng.choice(tasks_for(script)), script, rng, "train")
        yield from (script.text, script.german or "", example.instruction, *example.answer.split("\n"))
    yield from ordinary_sentences("train")[:VOCABULARY_SENTENCES]


def symbol_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids of SYMBOLS, none of which belongs into an answer."""
    return tuple(tokenizer.encode(symbol.replace(SPACE, " "))[-1] for symbol in SYMBOLS)


@dataclass(frozen=True, slots=True)
class Segment:
    """One example in ids. prompt: from BOS in front of `</SPEECH>` to `[/INST]`. answer: ends with EOS.

    adapter: what the prompt adapter reads. choice: this many ids at the answer's end are the letter chosen.
    """

    task: str
    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    adapter: tuple[int, ...]
    choice: int = 0


@dataclass(frozen=True, slots=True)
class Encoder:
    """Examples to ids, through the template that serving uses."""

    tokenizer: Tokenizer
    config: LlamaConfig

    @property
    def left(self) -> tuple[int, ...]:
        """Ids in front of every clip."""
        return build_prompt(self.tokenizer, self.config.bos_token_id, "", None, audio=True).left_ids

    def segment(self, example: Example, audio: bool = True) -> Segment:
        """Ids of one example. audio: false gives the whole template without a clip as the prompt."""
        prompt = build_prompt(
            self.tokenizer, self.config.bos_token_id, example.instruction, None, audio=audio
        )
        ids = prompt.right_ids if audio else prompt.left_ids
        answer = (*self.tokenizer.encode(example.answer), self.config.eos_token_id)
        choice = len(self.tokenizer.encode(example.answer[-LETTER:])) + 1 if example.task in CHOICES else 0
        return Segment(example.task, ids, answer, prompt.adapter_ids, choice)
