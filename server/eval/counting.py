"""Whether a sentence speaks of one speaker or of several."""

from __future__ import annotations

import re

from server.eval.words import NEGATIONS, clauses

NOBODY = re.compile(r"\bno(?:\s+|-)(?:one|other)\b", re.IGNORECASE)
"""Neither the answer no nor the number one."""
_CUT = "|"
_GENERIC = frozenset(("a", "also", "the", "other", "speaker", "person", "voice", "individual", "talker"))
"""What does not tell one from the other."""
_ONE = r"\b(?:one|1|a single)"
_ONE_AND_ONE = re.compile(
    rf"{_ONE} ((?:\w+ ){{1,3}}?)(?:\| (?:and )?|and |plus ){_ONE} ((?:\w+ ?){{1,2}})"
)
_SPEAKER = r"(?:\w+ )?(?:speaker|person|voice|individual|talker|human)\b"
_SAYS = re.compile(
    r"\b(?:"
    r"(?P<several>more than (?:one|a single|1)|different|multiple|several|many)"
    r"|(?P<count>two|three|four|five|six|[2-6])"
    r"|(?P<same>same)"
    r"|(?P<only>(?:only|just|exactly) (?:one|a single|1)|single|nobody)"
    rf"|(?P<there>there (?:is|was) (?:one|1)(?= {_SPEAKER}|\s*$))"
    r"|(?P<one>one|1)"
    r")\b"
)
_UNSURE = re.compile(r"\bnot (?:sure|certain|clear|know)\b")


def is_one_speaker(text: str) -> bool | None:
    """Of one (or the same one): True; of several: False; None: of neither, or it contradicts itself.

    A bare "one" gives way to several ("there are two, one of them a woman"), and so does what only denies
    several ("not two but three"); "only one" beside "two" is a contradiction.
    """
    said = {found for clause in _parts(text) for found in _said(clause)}
    if "several" in said:
        return None if "one" in said else False
    return True if said else None


def _parts(text: str) -> list[str]:
    parts = clauses(NOBODY.sub("nobody", text))
    joined = f" {_CUT} ".join(" ".join(words) for words in parts)
    return _ONE_AND_ONE.sub(_several_if_unlike, joined).split(_CUT)


def _several_if_unlike(found: re.Match[str]) -> str:
    """ "One man and one woman" are several, "one speaker, one voice" may be one."""
    kinds = [set(group.split()) - _GENERIC for group in found.groups()]
    return " several " if all(kinds) and kinds[0] != kinds[1] else found[0]


def _said(clause: str) -> set[str]:
    """ "one", "several", or "perhaps one", as often as the clause says so."""
    if _UNSURE.search(clause):
        return set()
    found = list(_SAYS.finditer(clause))
    if any(match.lastgroup == "same" for match in found):
        # "The two clips have the same speaker": the two are no speakers.
        found = [match for match in found if match.lastgroup != "count"]
    return {_meaning(match, clause) for match in found}


def _meaning(found: re.Match[str], clause: str) -> str:
    is_denied = sum(word in NEGATIONS for word in clause[: found.start()].split()) % 2 == 1
    if found.lastgroup in ("several", "count"):
        return "perhaps one" if is_denied else "several"
    if is_denied:
        return "several"
    return "perhaps one" if found.lastgroup == "one" else "one"
