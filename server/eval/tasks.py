"""The tasks of the published test data, and how each is scored."""

from __future__ import annotations

import enum
import re


class Kind(enum.Enum):
    """How a task's answers are scored."""

    TRANSCRIPTION = "transcription"
    TRANSLATION = "translation"
    SPEAKERS = "speakers"
    EMOTION = "emotion"
    CHOICE = "choice"
    TEXT = "text"
    STEPS = "steps"


_NAMES = {
    "asr": ("asr", Kind.TRANSCRIPTION),
    "sv": ("sv", Kind.SPEAKERS),
    "emo": ("emo", Kind.EMOTION),
    "sqa": ("SQA", Kind.CHOICE),
    "gaokao": ("SQA", Kind.CHOICE),
    "sqqa": ("SQQA", Kind.TEXT),
    "summary": ("summary", Kind.TEXT),
    "ii-task": ("II-task", Kind.STEPS),
    "cot-task": ("CoT-task", Kind.STEPS),
    "cot-task-story": ("CoT-task-story", Kind.STEPS),
}
_KINDS = dict(_NAMES.values())
_PAIR = re.compile(r"[a-z]{2,3}2([a-z]{2,3})")
_BLEU_TOKENIZERS = {"zh": "zh", "ja": "char", "ko": "char"}
"""Languages that 13a cannot cut into words; sacrebleu's own choice for the last two needs MeCab."""
KNOWN = "asr, en2de (or any pair), sv, emo, SQA, gaokao, SQQA, summary, II-task, CoT-task or CoT-task-story"


def canonical(task: str) -> str:
    """The published spelling of a known task; other names as they are."""
    lower = task.lower()
    if _PAIR.fullmatch(lower):
        return lower
    return _NAMES[lower][0] if lower in _NAMES else task


def kind_of(task: str) -> Kind:
    """How a task is scored; unknown ones as free text."""
    return Kind.TRANSLATION if _PAIR.fullmatch(task) else _KINDS.get(task, Kind.TEXT)


def task_of_file(stem: str) -> str | None:
    """The one task that a file's name says, whole or as a word of it ("asr", "test-clean_asr"), or None."""
    if _is_known(stem):
        return canonical(stem)
    named = {canonical(word) for word in re.split(r"[-_. ]+", stem) if _is_known(word)}
    return named.pop() if len(named) == 1 else None


def bleu_tokenizer(task: str) -> str:
    """sacrebleu's tokenizer for the language that a pair translates into."""
    pair = _PAIR.fullmatch(task)
    return _BLEU_TOKENIZERS.get(pair[1], "13a") if pair else "13a"


def _is_known(name: str) -> bool:
    return name.lower() in _NAMES or _PAIR.fullmatch(name.lower()) is not None
