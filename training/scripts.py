"""What is said in the clips of the training data."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from training.facts import Fact, families
from training.grammar import everyday_sentence
from training.scenes import DIALOGUES, STORIES, Asked, Scene
from training.words import Entry, fill_english, fill_german, pick, tables

Split = Literal["train", "test"]

KINDS = ("everyday", "ordinary", "story", "dialogue", "question", "digits")
EMOTIONS = ("neutral", "happy", "sad", "angry")
TEST_PERCENT = 10

_OPTION_TRIES = 50
_FAMILY_WEIGHT_POWER = 0.6  # between every family as often and every fact as often
_SHORT_DIGITS = 3  # digit strings up to this length are too few to be split


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a clip: which of its voices says it, the English and its German."""

    speaker: int
    text: str
    german: str | None


@dataclass(frozen=True, slots=True)
class Choice:
    """A question about a clip with three possible answers."""

    question: str
    options: tuple[str, str, str]
    correct: int


@dataclass(frozen=True, slots=True)
class Script:
    """What is said in one clip, how, and what can be asked about it.

    emotion: one of EMOTIONS, or empty where it is said in several ways.
    """

    kind: str
    lines: tuple[Line, ...]
    emotion: str
    questions: tuple[Choice, ...] = ()
    summary: tuple[str, str] | None = None
    answer: str | None = None

    @property
    def text(self) -> str:
        """The whole English text."""
        return " ".join(line.text for line in self.lines)

    @property
    def german(self) -> str | None:
        """The whole German text, if every line has one."""
        lines = [line.german for line in self.lines if line.german is not None]
        return " ".join(lines) if len(lines) == len(self.lines) else None

    @property
    def speakers(self) -> int:
        """How many voices speak."""
        return len({line.speaker for line in self.lines})


def split_of(text: str) -> Split:
    """The split a text belongs to, by its hash."""
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
    return "test" if number % 100 < TEST_PERCENT else "train"


def draw_script(kind: str, rng: random.Random, split: Split) -> Script:
    """A new script of a kind (all but "ordinary", whose sentences come from elsewhere)."""
    if kind == "question":
        return _question(rng, split)
    drawn: Callable[[random.Random], Script] = _DRAWN[kind]
    while True:
        script = drawn(rng)
        if _free_of_split(script) or all(split_of(line) == split for line in _split_keys(script)):
            return replace(script, emotion=rng.choice(EMOTIONS))


def ordinary_script(sentence: str, emotion: str = "neutral") -> Script:
    """The script of a given sentence, of which no German is known."""
    return Script("ordinary", (Line(0, sentence, None),), emotion)


def _free_of_split(script: Script) -> bool:
    return script.kind == "digits" and len(script.text.split()) <= _SHORT_DIGITS


def _split_keys(script: Script) -> list[str]:
    """What must not occur in the other split: every everyday sentence, or the whole text."""
    if script.kind == "dialogue" and not script.questions:
        return [line.text for line in script.lines]
    return [script.text]


def _everyday(rng: random.Random) -> Script:
    english, german = everyday_sentence(rng)
    return Script("everyday", (Line(0, english, german),), "neutral")


def _digits(rng: random.Random) -> Script:
    drawn = rng.choices(tables()["digit"], k=rng.randint(1, 6))
    separator = rng.choice((", ", ", ", " "))
    english = separator.join(digit.english("", {}) for digit in drawn)
    german = separator.join(digit.german("", {}) for digit in drawn)
    line = Line(0, f"{english.capitalize()}.", f"{german.capitalize()}.")
    return Script("digits", (line,), "neutral")


def _story(rng: random.Random) -> Script:
    return _played(rng.choice(STORIES), "story", rng)


def _dialogue(rng: random.Random) -> Script:
    """Lines of one or of two voices, the same texts for both."""
    share = rng.random()
    if share < 0.7:
        script = _played(rng.choice(DIALOGUES), "dialogue", rng)
    elif share < 0.85:
        script = _played(rng.choice(STORIES), "dialogue", rng)
    else:
        drawn = [everyday_sentence(rng) for _ in range(2)]
        script = Script("dialogue", tuple(Line(0, *pair) for pair in drawn), "neutral")
    alone = rng.random() < 0.5
    lines = tuple(replace(line, speaker=0 if alone else place % 2) for place, line in enumerate(script.lines))
    return replace(script, lines=lines)


_DRAWN: dict[str, Callable[[random.Random], Script]] = {
    "everyday": _everyday,
    "digits": _digits,
    "story": _story,
    "dialogue": _dialogue,
}


def _played(scene: Scene, kind: str, rng: random.Random) -> Script:
    picks: dict[str, Entry] = {}
    for _, english, _ in scene.lines:
        pick(english, rng, picks)
    for english in scene.summary:
        pick(english, rng, picks)
    lines = tuple(
        Line(speaker, fill_english(english, picks), fill_german(german, picks))
        for speaker, english, german in scene.lines
    )
    questions = tuple(_choice(asked, picks, rng) for asked in scene.asked)
    summary = (fill_english(scene.summary[0], picks), fill_german(scene.summary[1], picks))
    return Script(kind, lines, "neutral", questions, summary)


def _choice(asked: Asked, picks: dict[str, Entry], rng: random.Random) -> Choice:
    """The question with the right answer and two wrong ones, in any order."""
    right = fill_english(asked.answer, picks)
    options = [right]
    table = tables()[asked.slot.rstrip("0123456789")]
    for _ in range(_OPTION_TRIES):
        wrong = fill_english(asked.answer, {**picks, asked.slot: rng.choice(table)})
        if wrong not in options:
            options.append(wrong)
        if len(options) == 3:
            break
    rng.shuffle(options)
    first, second, third = options
    return Choice(fill_english(asked.question, picks), (first, second, third), options.index(right))


def draw_fact(rng: random.Random) -> Fact:
    """A fact, those of small families more often than their share."""
    weights = [len(family) ** _FAMILY_WEIGHT_POWER for family in families()]
    return rng.choice(rng.choices(families(), weights)[0])


def _question(rng: random.Random, split: Split) -> Script:
    fact = draw_fact(rng)
    text = fact.held_out if split == "test" else rng.choice(fact.wordings)
    return Script("question", (Line(0, text, None),), rng.choice(EMOTIONS), answer=fact.answer)
