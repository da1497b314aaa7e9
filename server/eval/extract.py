"""What an answer in plain words chose. None: no answer of the task's form is in it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from server.eval import letters
from server.eval.counting import NOBODY, is_one_speaker
from server.eval.words import clauses, denies, plain

LETTERS = "ABCDEFGH"
_EMOTIONS = {
    "neutral": "neutral neu calm composed unemotional emotionless",
    "happy": "happy hap happiness happily joy joyful joyous cheerful glad delighted pleased elated",
    "angry": "angry ang anger angrily furious fury mad rage irritated irritation annoyed annoyance",
    "sad": "sad sadness sadly sorrow sorrowful unhappy depressed depression melancholy melancholic grief",
    "excited": "excited exc excitement excitedly enthusiastic enthusiasm",
    "fearful": "fearful fear fea afraid scared frightened terrified anxious anxiety",
    "disgusted": "disgusted disgust disgusting",
    "surprised": "surprised surprise sur surprising astonished amazed",
    "frustrated": "frustrated fru frustration frustrating",
    "bored": "bored boredom",
}
_EMOTION_OF = {word: emotion for emotion, words in _EMOTIONS.items() for word in words.split()}
_NEGATION_REACH = 2
"""Words between a negation and what it denies: "not at all happy"."""
_NOUN_DENIALS = frozenset({"no", "without"})
_NUMBERS = {
    **{word: word for word in ("one", "two", "three", "four", "five", "six")},
    **{str(digit): word for digit, word in enumerate(("one", "two", "three", "four", "five", "six"), 1)},
    "single": "one",
}
_YES_NO = re.compile(r"(?:.*\b(?:answer(?: is| would be)?|i (?:think|believe)) )?(yes|no)\b")


# Emotions


def emotion(text: str, references: Collection[str]) -> str | None:
    """The one emotion that is named and not denied. Two different ones are no answer.

    references: the emotions that the manifest's references name. Where it has happy and not excited, excited
    counts as happy, as is usual with IEMOCAP.
    """
    affirmed = (word for words in clauses(text) for word in _affirmed(words))
    named = {_fold(word, references) for word in affirmed} - {None}
    return named.pop() if len(named) == 1 else None


def emotion_reference(text: str) -> str:
    """The class that a reference names; an unknown one stands for itself."""
    return _EMOTION_OF.get(plain(text), plain(text))


def _fold(word: str, references: Collection[str]) -> str | None:
    found = word if word in references else _EMOTION_OF.get(word)
    if found == "excited" and "excited" not in references and "happy" in references:
        return "happy"
    return found


def _affirmed(words: list[str]) -> Iterator[str]:
    """Those of a clause that nothing shortly before them denies."""
    for position, word in enumerate(words):
        if not denies(words[max(0, position - _NEGATION_REACH - 1) : position]):
            yield word


# Speakers: yes or no, or how many


def speakers(text: str, prompt: str, reference: str) -> str | None:
    """Yes or no where the question's own reference is one, else the number that is named ("one", "two", ...).

    A number answers a yes-or-no question too: "There are two speakers" to "Is there only one speaker?".
    """
    words = _words(text)
    if reference not in ("yes", "no"):
        return _number(words)
    return _yes_no(words) or _yes_no_by_count(text, prompt)


def speaker_reference(text: str) -> str:
    """The class that a reference names; an unknown one stands for itself."""
    words = _words(text)
    return _yes_no(words) or _number(words) or words


def _words(text: str) -> str:
    return plain(NOBODY.sub("nobody", text))


def _yes_no(words: str) -> str | None:
    """Only where it is the answer: first, or after "the answer is", not in "There is no other speaker"."""
    found = _YES_NO.match(words)
    return found[1] if found else None


def _number(words: str) -> str | None:
    named = {_NUMBERS[word] for word in words.split() if word in _NUMBERS}
    return named.pop() if len(named) == 1 else None


def _yes_no_by_count(answer: str, prompt: str) -> str | None:
    said, asked = is_one_speaker(answer), is_one_speaker(prompt)
    if said is None or asked is None:
        return None
    return "yes" if said == asked else "no"


# Options


def options(prompt: str) -> dict[str, str]:
    """The choices of a question, {letter: text}: the longest row of markers "A.", "B)", ... from A on."""
    markers = [
        (found[1], found.start(), found.end())
        for found in re.finditer(r"(?<!\w)([A-H])\s?[.):\u3001\uff0e\uff1a]\s*", prompt)
    ]
    chains = [_chain(markers[start:]) for start, marker in enumerate(markers) if marker[0] == "A"]
    # Of equal chains the last: an "A." may stand in a name before the options.
    best = max(reversed(chains), key=len, default=[])
    ends = [start for _, start, _ in best[1:]] + [len(prompt)]
    texts = (
        prompt[begin:end].rstrip("( ").strip(" \t;,.\uff1b\u3002")
        for (_, _, begin), end in zip(best, ends, strict=False)
    )
    return {letter: text for (letter, _, _), text in zip(best, texts, strict=True)} if len(best) > 1 else {}


def choice(text: str, choices: dict[str, str]) -> str | None:
    """The letter of the one option that an answer names, by its letter or by its text.

    A letter that is stated ("the answer is B") wins over one that only stands there ("A. ..."); several
    letters are no answer. choices: {} if the question's could not be read; then letters alone count.
    """
    allowed = set(choices or LETTERS)
    found = letters.stated(text) & allowed or (letters.marked(text) | _echoed(text, choices)) & allowed
    if found:
        return found.pop() if len(found) == 1 else None
    return _option_text(clauses(text), choices)


def choice_reference(text: str, choices: dict[str, str]) -> str:
    """The letter that a reference names; one that names none stands for itself."""
    return choice(text, choices) or plain(text)


def _echoed(text: str, choices: dict[str, str]) -> set[str]:
    """The letters of an answer that says all the options over again."""
    said = options(text)
    return set(said) if len(said) >= len(choices) else set()


def _option_text(said: list[list[str]], choices: dict[str, str]) -> str | None:
    texts = {letter: [word for words in clauses(text) for word in words] for letter, text in choices.items()}
    named = {letter: f" {' '.join(text)} " for letter, text in texts.items() if _is_affirmed(text, said)}
    # "in the morning" is in "early in the morning": the longer one was meant.
    outer = [
        letter
        for letter, text in named.items()
        if not any(text != other and text in other for other in named.values())
    ]
    return outer[0] if len(outer) == 1 else None


def _is_affirmed(text: list[str], said: list[list[str]]) -> bool:
    """Whether a text stands somewhere without a denial before it in its clause."""
    words = [word for clause in said for word in clause]
    before = [clause[:position] for clause in said for position in range(len(clause))]
    places = (start for start in range(len(words)) if words[start : start + len(text)] == text)
    return bool(text) and any(not _denies_option(before[start]) for start in places)


def _denies_option(before: list[str]) -> bool:
    """ "No doubt" denies no verb: only "not" and the like reach as far as the clause does."""
    verbal = [word for word in before if word not in _NOUN_DENIALS]
    return denies(before[-_NEGATION_REACH - 1 :]) or denies(verbal)


def _chain(markers: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """The markers from the first one on that follow the alphabet; others in between are part of the text."""
    chain: list[tuple[str, int, int]] = []
    for marker in markers:
        if len(chain) < len(LETTERS) and marker[0] == LETTERS[len(chain)]:
            chain.append(marker)
    return chain


# Several instructions in one prompt

_BREAKS = r"[\n;\uff1b]+"
_SENTENCE_ENDS = _BREAKS + r"|(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])"
_LABELS = re.compile(r"\w+(?:\+\w+)+")


def is_labels(reference: str) -> bool:
    """Whether a reference only lists the parts that the answer should have ("ASR+SQA+SFT")."""
    return _LABELS.fullmatch(reference.strip()) is not None


def num_instructions(prompt: str, reference: str) -> int:
    """How many parts an answer should have: the reference's labels, else the prompt's clauses at semicolons.

    A clause that starts with "B." and the like goes on with the options of the one before.
    """
    if is_labels(reference):
        return reference.count("+") + 1
    instructions = [clause.strip() for clause in prompt.split(";")]
    return sum(1 for clause in instructions if clause and not re.match(r"[B-H][.)]", clause)) or 1


def parts(answer: str, wanted: int) -> list[str]:
    """An answer cut at line ends and semicolons; if those are too few, at the ends of sentences."""
    coarse = _cut(_BREAKS, answer)
    return coarse if len(coarse) >= wanted else _cut(_SENTENCE_ENDS, answer)


def _cut(pattern: str, text: str) -> list[str]:
    return [part.strip() for part in re.split(pattern, text) if part and plain(part)]
