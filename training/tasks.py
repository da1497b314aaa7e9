"""Instructions and answers about the clips of the training data."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from training import phrasings as say
from training.phrasings import Part, Phrasings, varied
from training.refusals import draw_refusal
from training.scripts import Script, draw_fact

TASKS: tuple[str, ...] = (
    "asr", "en2de", "sv", "emotion", "sqa", "find", "sqqa", "content", "summary", "ii", "cot", "refusal",
    "text",
)  # fmt: skip

_SINGLES = ("asr", "en2de", "sv", "emotion", "content", "summary", "text")
_LETTERS = "ABC"
CHOICES = frozenset({"sqa", "find"})
"""Tasks whose answer ends with a letter in brackets, the last LETTER characters."""
LETTER = len("(A)")
_EMPTY_PROMPT_SHARE = 0.75
_DIALOGUES = ("dialogue", "chained")
"""Kinds of clips with one voice or two."""
_COUNTED_SHARE = 0.25
"""Of other clips, where the count of speakers may be asked beside other things: the answer is always one."""
_HELD_OUT_WORDING_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class Example:
    """One instruction about a clip and the answer to it."""

    task: str
    instruction: str
    answer: str


def tasks_for(script: Script) -> list[str]:
    """The tasks that a clip can be used for."""
    fits = {
        "en2de": script.german is not None,
        "sv": script.speakers <= 2,
        "emotion": bool(script.emotion),
        "sqa": bool(script.questions),
        "content": bool(script.questions),
        "find": bool(script.questions),
        "sqqa": script.answer is not None,
        "summary": script.summary is not None,
        "cot": bool(_cot_makers(script)),
    }
    return [task for task in TASKS if fits.get(task, True)]


def make_example(task: str, script: Script, rng: random.Random, phrasings: Part) -> Example:
    """An example of a task that fits the clip."""
    instruction, answer = _MAKERS[task](script, rng, phrasings)
    return Example(task, instruction, answer)


Made = tuple[str, str]
Maker = Callable[[Script, random.Random, Part], Made]


def _wording(wordings: Phrasings, rng: random.Random, part: Part) -> str:
    return varied(wordings.draw(rng, part), rng)


def _german(script: Script) -> str:
    if script.german is None:
        raise ValueError("the clip has no German text")
    return script.german


def _asr(script: Script, rng: random.Random, part: Part) -> Made:
    return _wording(say.ASR, rng, part), script.text


def _en2de(script: Script, rng: random.Random, part: Part) -> Made:
    return _wording(say.EN2DE, rng, part), _german(script)


def _sv(script: Script, rng: random.Random, part: Part) -> Made:
    alone = script.speakers == 1
    wordings, answers = rng.choice((
        (say.SV_ONE, ("Yes.", "No.")),
        (say.SV_TWO, ("No.", "Yes.")),
        (say.SV_COUNT, ("One.", "Two.")),
    ))  # fmt: skip
    return _wording(wordings, rng, part), answers[0 if alone else 1]


def _emotion(script: Script, rng: random.Random, part: Part) -> Made:
    if rng.random() < 0.7:
        return _wording(say.EMOTION_WORD, rng, part), script.emotion
    return _wording(say.EMOTION_SENTENCE, rng, part), f"The speaker sounds {script.emotion}."


def _sqa(script: Script, rng: random.Random, part: Part) -> Made:
    choice = rng.choice(script.questions)
    first, second, third = choice.options
    layout = say.SQA.draw(rng, part)
    instruction = layout.format(question=choice.question, a=first, b=second, c=third)
    return instruction, f"{choice.options[choice.correct]}. ({_LETTERS[choice.correct]})"


def _find(script: Script, rng: random.Random, part: Part) -> Made:
    """The letter of an option that the instruction itself names: what `sqa` asks, without the listening."""
    choice = rng.choice(script.questions)
    first, second, third = choice.options
    letter = rng.randrange(3)
    option = choice.options[letter]
    named = option[0].lower() + option[1:]
    instruction = say.FIND.draw(rng, part).format(option=named, a=first, b=second, c=third)
    return instruction, f"{option}. ({_LETTERS[letter]})"


def _answer(script: Script) -> str:
    if script.answer is None:
        raise ValueError("the clip asks nothing")
    return script.answer


def _sqqa(script: Script, rng: random.Random, part: Part) -> Made:
    return "" if rng.random() < _EMPTY_PROMPT_SHARE else _wording(say.SPOKEN, rng, part), _answer(script)


def _content(script: Script, rng: random.Random, part: Part) -> Made:
    choice = rng.choice(script.questions)
    instruction = say.CONTENT.draw(rng, part).format(question=choice.question)
    return instruction, f"{choice.options[choice.correct]}."


def _summary(script: Script, rng: random.Random, part: Part) -> Made:
    return _wording(say.SUMMARY, rng, part), _summaries(script)[0]


def _summaries(script: Script) -> tuple[str, str]:
    if script.summary is None:
        raise ValueError("the clip has no summary")
    return script.summary


def _text(script: Script, rng: random.Random, part: Part) -> Made:
    fact = draw_fact(rng)
    question = rng.choice(fact.wordings)
    if part == "held_out" and rng.random() < _HELD_OUT_WORDING_SHARE:
        question = fact.held_out
    return say.TEXT.draw(rng, part).format(question=question), fact.answer


def _refusal(script: Script, rng: random.Random, part: Part) -> Made:
    instruction, answer = draw_refusal(rng, part)
    return varied(instruction, rng), answer


def _ii(script: Script, rng: random.Random, part: Part) -> Made:
    """Two or three independent instructions in one; the answers are numbered."""
    singles = [task for task in tasks_for(script) if task in _SINGLES]
    if "sv" in singles and script.kind not in _DIALOGUES and rng.random() >= _COUNTED_SHARE:
        singles.remove("sv")
    chosen = rng.sample(singles, min(len(singles), rng.choice((2, 2, 3))))
    made = [_MAKERS[task](script, rng, part) for task in chosen]
    instruction = _joined([instruction for instruction, _ in made], rng, part)
    return instruction, _numbered(*(answer for _, answer in made))


def _numbered(*answers: str) -> str:
    """Several answers as one. (A new line in place of the number would split words that come after it in two:
    the pieces of words begin with a space.)
    """
    return " ".join(f"{number}. {answer}" for number, answer in enumerate(answers, 1))


def _joined(instructions: list[str], rng: random.Random, part: Part) -> str:
    connectors = [say.OPENERS.draw(rng, part)]
    connectors += [say.MIDDLES.draw(rng, part) for _ in instructions[2:]]
    connectors.append(rng.choice((say.MIDDLES, say.FINALS)).draw(rng, part))
    lower = rng.random() < 0.5
    mark = rng.choice((";", ";", ".", ","))
    parts: list[str] = []
    for connector, instruction in zip(connectors, instructions, strict=True):
        said = instruction.rstrip(".!")
        if lower and not connector.endswith(":"):
            said = said[:1].lower() + said[1:]
        parts.append(f"{connector} {said}")
    ended = [text if text.endswith("?") else text + mark for text in parts[:-1]]
    last = parts[-1] if parts[-1].endswith("?") else parts[-1] + "."
    return " ".join([*ended, last])


def _cot_makers(script: Script) -> list[Maker]:
    makers: list[Maker] = []
    if script.german is not None:
        makers.append(_cot_german)
    if script.summary is not None:
        makers.append(_cot_summary)
    if script.questions:
        makers.append(_cot_content)
    if script.answer is not None:
        makers.append(_cot_spoken)
    return makers


def _cot(script: Script, rng: random.Random, part: Part) -> Made:
    """Steps that build on each other; their results are numbered."""
    return rng.choice(_cot_makers(script))(script, rng, part)


def _cot_german(script: Script, rng: random.Random, part: Part) -> Made:
    return _wording(say.COT_GERMAN, rng, part), _numbered(script.text, _german(script))


def _cot_summary(script: Script, rng: random.Random, part: Part) -> Made:
    english, german = _summaries(script)
    return _wording(say.COT_SUMMARY, rng, part), _numbered(script.text, english, german)


def _cot_content(script: Script, rng: random.Random, part: Part) -> Made:
    choice = rng.choice(script.questions)
    instruction = say.COT_CONTENT.draw(rng, part).format(question=choice.question)
    return instruction, _numbered(script.text, f"{choice.options[choice.correct]}.")


def _cot_spoken(script: Script, rng: random.Random, part: Part) -> Made:
    return _wording(say.COT_SPOKEN, rng, part), _numbered(script.text, _answer(script))


_MAKERS: dict[str, Maker] = {
    "asr": _asr,
    "en2de": _en2de,
    "sv": _sv,
    "emotion": _emotion,
    "sqa": _sqa,
    "sqqa": _sqqa,
    "content": _content,
    "summary": _summary,
    "ii": _ii,
    "cot": _cot,
    "refusal": _refusal,
    "text": _text,
    "find": _find,
}
