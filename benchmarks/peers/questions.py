"""What all sides are asked: clips of one length, instructions of one number of tokens, no two alike."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.sizes import made_up_words
from model.tiny import CORPUS
from server.audio_decode import decode_audio
from server.audio_limits import AudioLimits
from server.bench.questions import synthetic_clip
from server.bench.types import Clip, Question
from server.types import DecodedAudio

LIMITS = AudioLimits(max_seconds=120.0)
NUM_WORDS = 500
MAX_TRIES = 10_000

Encode = Callable[[str], Sequence[int]]
"""Text to token ids."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a workload.

    num_questions: so many are asked at once. per_clip: so many of them are about one clip. sample: of so
    many the side that takes one at a time is asked, for its rate does not depend on how many wait.
    """

    clip_seconds: float = 10.0
    instruction_tokens: int = 20
    answer_tokens: int = 64
    num_questions: int = 16
    per_clip: int = 4
    sample: int = 2


class QuestionMaker:
    """Makes questions whose clips and instructions no question before them had."""

    def __init__(self, encode: Encode, shape: Shape, seed: int) -> None:
        self.shape = shape
        self._encode = encode
        self._random = random.Random(seed)
        self._words = [*" ".join(CORPUS).split(), *made_up_words(NUM_WORDS)]
        self._instructions: set[str] = set()
        self._first_clip = seed * 1000
        self._num_clips = 0
        self._num_questions = 0

    def round(self, count: int | None = None, per_clip: int | None = None) -> tuple[Question, ...]:
        """`count` questions, `per_clip` about each clip; the shape's numbers unless given."""
        count, per_clip = count or self.shape.num_questions, per_clip or self.shape.per_clip
        clips = [self.clip() for _ in range(-(-count // per_clip))]
        return tuple(self.about(clips[index // per_clip]) for index in range(count))

    def clip(self) -> Clip:
        """A new clip of the shape's length."""
        self._num_clips += 1
        return synthetic_clip(self.shape.clip_seconds, self._first_clip + self._num_clips)

    def about(self, clip: Clip, prompt: str | None = None) -> Question:
        """A question about `clip`, with a new instruction unless one is given."""
        self._num_questions += 1
        return Question(f"q{self._num_questions}", clip, self.instruction() if prompt is None else prompt)

    def instruction(self) -> str:
        """A new one of exactly the shape's number of tokens. Raises ValueError if none is found."""
        for _ in range(MAX_TRIES):
            text = self._draw()
            if text not in self._instructions and len(self._encode(text)) == self.shape.instruction_tokens:
                self._instructions.add(text)
                return text
        raise ValueError(f"no other instruction of {self.shape.instruction_tokens} tokens was found")

    def _draw(self) -> str:
        """Words until the number of tokens is reached or passed."""
        text = self._random.choice(self._words)
        while len(self._encode(text)) < self.shape.instruction_tokens:
            text += " " + self._random.choice(self._words)
        return text


def decoded(questions: Sequence[Question]) -> dict[str, DecodedAudio]:
    """The clip of each question as the engine takes it, by the question's id."""
    audio = {data: decode_audio(data, LIMITS) for data in {question.clip.data for question in questions}}
    return {question.id: audio[question.clip.data] for question in questions}


def thinned(questions: Sequence[Question], count: int) -> tuple[Question, ...]:
    """`count` of the questions, evenly spread."""
    return tuple(questions[index * len(questions) // count] for index in range(count))
