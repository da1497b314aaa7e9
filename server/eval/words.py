"""Words of an answer, its clauses, and what a clause denies."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

NEGATIONS = frozenset({"not", "no", "never", "without", "neither", "nor"})
_NOT_ALONE = frozenset({"only", "just", "merely"})
""" "Not only angry" is angry."""
_FULL_NOT = ((r"\bcan(?:'t|not)\b", "can not"), (r"\bwon't\b", "will not"), (r"n't\b", " not"))
_NO_DENIAL = r"\b(?:yes or no|whether or not|or not|(?:no|without(?: a| any)?) doubt(?: that)?)\b"
_CLAUSE_ENDS = re.compile(
    r"[,;:.!?()\n\u2013\u2014\u3001\u3002]+|\s-+\s"
    rf"|(?=\b(?:but|instead|and|because|since|so|therefore|which)\b)|{_NO_DENIAL}"
)


def plain(text: str) -> str:
    """Lower case, compatibility forms, punctuation and symbols as spaces, single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join("".join(c if unicodedata.category(c)[0] not in "PSCZ" else " " for c in folded).split())


def clauses(text: str) -> list[list[str]]:
    """The words of each clause, with "n't" as "not"; a negation reaches no further than its clause."""
    return [words for words in (plain(part).split() for part in _CLAUSE_ENDS.split(with_not(text))) if words]


def with_not(text: str) -> str:
    """Lower case, compatibility forms, and "isn't" as "is not"."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    for short, full in _FULL_NOT:
        folded = re.sub(short, full, folded)
    return folded


def denies(words: Sequence[str]) -> bool:
    """Whether these words deny what follows them in their clause."""
    return any(
        word in NEGATIONS and (position + 1 == len(words) or words[position + 1] not in _NOT_ALONE)
        for position, word in enumerate(words)
    )
