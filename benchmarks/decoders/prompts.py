"""What all are asked: prompts of one number of tokens that share no more than the template's opening.

Our engine is asked in text (without audio, so its LoRA is off), the others by the ids that it makes of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.peers.questions import QuestionMaker
from benchmarks.peers.questions import Shape as QuestionShape
from model.checkpoint_format import TOKENIZER_FILE
from model.config import SpeechLLMConfig
from model.prompt import build_prompt
from model.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes: of every prompt, of every answer, and of the batches that are measured."""

    prompt_tokens: int = 32
    answer_tokens: int = 32
    batches: tuple[int, ...] = (1, 8, 32)

    @property
    def most_tokens(self) -> int:
        """Of a prompt and its answer."""
        return self.prompt_tokens + self.answer_tokens

    @property
    def largest_batch(self) -> int:
        """Prompts at once."""
        return max(self.batches)


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """A request without audio, and the token ids [prompt_tokens] that are made of it."""

    system: str
    instruction: str
    ids: tuple[int, ...]


class PromptMaker:
    """Makes prompts that it has not made before: no cache of prefixes helps anyone."""

    def __init__(self, model: Path, shape: Shape, seed: int) -> None:
        self._bos_id = SpeechLLMConfig.load(model).llama.bos_token_id
        self._tokenizer = Tokenizer(model / TOKENIZER_FILE)
        sizes = QuestionShape(instruction_tokens=shape.prompt_tokens)
        self._texts = QuestionMaker(self._ids, sizes, seed)

    def batch(self, count: int) -> list[TextPrompt]:
        """`count` prompts. Raises ValueError where none has the shape's number of tokens."""
        return [self._prompt(self._texts.instruction()) for _ in range(count)]

    def _prompt(self, text: str) -> TextPrompt:
        """The first word stands in for the system text, so that prompts differ early."""
        system, _, instruction = text.partition(" ")
        return TextPrompt(system, instruction, tuple(self._ids(text)))

    def _ids(self, text: str) -> Sequence[int]:
        system, _, instruction = text.partition(" ")
        return build_prompt(self._tokenizer, self._bos_id, instruction, system, audio=False).left_ids
