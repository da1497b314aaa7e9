"""Letters of options in plain words: which ones an answer states, and which ones it merely marks."""

from __future__ import annotations

import re
from collections.abc import Iterable

_OPEN = r"[(\[\"'*]*"
_CLOSE = r"[)\]\"'*]*"
# "A restaurant" starts with an article: an A counts where a noun cannot follow.
_NO_NOUN = r"(?=[)\]\"'*.,:;!?/\u3001\u3002\uff0e]|\s*$|\s+(?:-|\(|(?:and|or|is|are|because|since|as)\b))"
_LETTER = rf"{_OPEN}(?:[B-H]\b(?!'\w)|A\b(?!'\w){_NO_NOUN}){_CLOSE}"
# Spaces have one place each, or a row of commas would be tried in all ways there are.
_BETWEEN = r"\s*(?:(?:[,/&]|\b(?:and|or)\b)\s*)+"
_LIST = rf"(?<!\w)({_LETTER}(?:{_BETWEEN}{_LETTER})*)"
_COPULA = r"(?:\s+(?:is|would be|should be|must be|will be)\b|\s*:|'s\b)"
_SURELY = (
    r"(?:\s+(?i:definitely|certainly|clearly|obviously|surely|probably|likely|most likely|perhaps|therefore"
    r"|thus|indeed|actually|simply)\b)?"
)
_TO_WHAT = r"(?:\s+(?i:to|for|of)(?:\s+[\w'-]+){1,4}?)?"
_CHOOSE = r"(?i:choose|chose|pick|picked|select|selected|go with|opt for)"
_REASON = r"(?i:based on|according to|given|considering|judging (?:by|from)|from|therefore|thus|hence|so)"
# Where a lower-case letter is no word: "answer: a", not "answer: a bank" nor "answer: a.m.".
_SMALL = rf"{_OPEN}([a-h])\b{_CLOSE}(?=[):\]]|\s*(?:$|[;!\n]|\.(?!\w)|,(?!\s*[a-h]\b)|because\b))"

_DENIED = re.compile(
    rf"{_LIST}\s*(?:(?:is|are)\s+(?:not|wrong|incorrect|false)|(?:isn't|aren't))\b"
    rf"|(?:\bnot|n't)\s+{_CHOOSE}\s+{_LIST}",
    re.MULTILINE,
)
_STATED = (
    re.compile(rf"\b(?i:answer|option|choice){_COPULA}*{_SURELY}\s*{_LIST}", re.MULTILINE),
    re.compile(rf"\b(?i:answer|option|choice){_TO_WHAT}{_COPULA}{_SURELY}\s*{_LIST}", re.MULTILINE),
    re.compile(rf"\b(?i:answer|option|choice){_COPULA}*{_SURELY}\s*{_SMALL}", re.MULTILINE),
    re.compile(rf"\b(?i:it|that)(?=\s|'){_COPULA}{_SURELY}\s*{_LIST}(?=\s*[.,;!?]|\s*$)", re.MULTILINE),
    re.compile(rf"\b{_CHOOSE}\s+{_LIST}", re.MULTILINE),
    re.compile(
        rf"(?:^|[.!?\n])\s*{_REASON}\b[^.!?\n]{{0,200}}?(?<![A-H]),\s*{_LIST}(?=\s*[.!\n]|\s*$)", re.MULTILINE
    ),
    re.compile(r"\b(?i:option|choice)\s+(A)\b"),
    re.compile(
        rf"{_LIST}{_COPULA}\s+(?:the\s+)?(?:most likely\s+)?(?i:correct|right|true|best|answer)\b",
        re.MULTILINE,
    ),
)
_CLAUSE = r"(?:^|[\n;])\s*"
_MARKED = (
    re.compile(rf"{_CLAUSE}{_OPEN}([A-Ha-h]){_CLOSE}[^\S\n]*(?:[.):,;\u3001\uff0e]|-(?!\w)|$)", re.MULTILINE),
    re.compile(rf"{_CLAUSE}({_LETTER}(?:{_BETWEEN}{_LETTER})+)", re.MULTILINE),
    re.compile(r"\(([A-H])\)"),
)


def stated(text: str) -> set[str]:
    """Letters that an answer says are the answer: "answer is B", "option B", "it's B", "I choose B"."""
    return _found(_STATED, _affirmed(text))


def marked(text: str) -> set[str]:
    """Letters alone on a line, first in a line or clause with a mark or in a list, or in brackets."""
    return _found(_MARKED, _affirmed(text))


def _affirmed(text: str) -> str:
    """Without letters that are denied: "(A) is wrong"."""
    return _DENIED.sub(" ", text.strip().replace("\u2019", "'"))


def _found(patterns: Iterable[re.Pattern[str]], text: str) -> set[str]:
    groups = (found for pattern in patterns for found in pattern.findall(text))
    return {letter.upper() for group in groups for letter in re.findall(r"(?<!\w)[A-Ha-h](?!\w)", group)}
