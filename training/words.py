"""Entries of the word tables and how they inflect, in English and in German."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from training import lexicon

Picks = Mapping[str, "Entry"]

_SLOT = re.compile(r"\{(\w+)(?::([^}]*))?\}")
_AN = re.compile(r"(?!one\b|uni|use|euro)(?:[aeiou]|hour|honest)", re.IGNORECASE)
_WEAK = ("e", "e", "e")  # nominative endings of an adjective after "der", by gender
_MIXED = ("er", "e", "es")  # and after "ein"
_DEFINITE = {
    "N": ("der", "die", "das"),
    "A": ("den", "die", "das"),
    "D": ("dem", "der", "dem"),
}
_EIN_ENDING = {"N": ("", "e", ""), "A": ("en", "e", ""), "D": ("em", "er", "em")}
_THIS_ENDING = {"N": ("er", "e", "es"), "A": ("en", "e", "es"), "D": ("em", "er", "em")}
_IT = {"N": ("er", "sie", "es"), "A": ("ihn", "sie", "es"), "D": ("ihm", "ihr", "ihm")}


class Entry(Protocol):
    """One row of a table; `form` says which form of it a template wants."""

    def english(self, form: str, picks: Picks) -> str: ...
    def german(self, form: str, picks: Picks) -> str: ...


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words that stay as they are; the form "D" or any other form is ignored."""

    en: str
    de: str

    def english(self, form: str, picks: Picks) -> str:
        return self.en

    def german(self, form: str, picks: Picks) -> str:
        return self.de


@dataclass(frozen=True, slots=True)
class Adjective:
    """An adjective; German forms: "" as it stands, "name" as the noun of a colour ("in Rot")."""

    en: str
    de: str
    stem: str

    def english(self, form: str, picks: Picks) -> str:
        return self.en

    def german(self, form: str, picks: Picks) -> str:
        return self.de.capitalize() if form == "name" else self.de


@dataclass(frozen=True, slots=True)
class Noun:
    """A noun; forms: English "a", "the", "pl", "bare", "my", German "einA", "derD", "itA", "plN"."""

    en: str
    en_plural: str
    de: str
    gender: int
    de_plural: str
    oblique: str

    def english(self, form: str, picks: Picks) -> str:
        form, _, adjective = form.partition("+")
        before = f"{picks[adjective].english('', picks)} " if adjective else ""
        if form in ("itEn", "herEn"):
            return {"itEn": ("he", "she", "it"), "herEn": ("him", "her", "it")}[form][self.gender]
        if form == "pl":
            return before + self.en_plural
        if form == "bare":
            return before + self.en
        if form == "a":
            form = "an" if _AN.match(before + self.en) else "a"
        return f"{form} {before}{self.en}"

    def german(self, form: str, picks: Picks) -> str:
        form, _, key = form.partition("+")
        adjective = picks[key] if key else None
        stem = adjective.stem if isinstance(adjective, Adjective) else ""
        if form in ("bare", "ob"):
            return self.de if form == "bare" else self.oblique
        article, case = form[:-1], form[-1]
        if article == "it":
            return _IT[case][self.gender]
        if article in ("pl", "diePl"):
            return self._plural(article, case, stem)
        noun = self.de if case == "N" else self.oblique
        return " ".join(
            filter(None, (self._article(article, case), self._attribute(article, case, stem), noun))
        )

    def _article(self, article: str, case: str) -> str:
        if article == "der":
            return _DEFINITE[case][self.gender]
        if article == "dies":
            return "dies" + _THIS_ENDING[case][self.gender]
        if article == "welch":
            return "welch" + _THIS_ENDING[case][self.gender]
        return article + _EIN_ENDING[case][self.gender]

    def _attribute(self, article: str, case: str, stem: str) -> str:
        if not stem:
            return ""
        if case == "D" or (case == "A" and self.gender == 0):
            return stem + "en"
        return stem + (_WEAK if article in ("der", "dies", "welch") else _MIXED)[self.gender]

    def _plural(self, article: str, case: str, stem: str) -> str:
        noun = self.de_plural
        if case == "D" and noun[-1] not in "ns":
            noun += "n"
        if article == "diePl":
            words = ("den" if case == "D" else "die", stem + "en" if stem else "", noun)
        else:
            words = ("", stem + ("en" if case == "D" else "e") if stem else "", noun)
        return " ".join(filter(None, words))


@dataclass(frozen=True, slots=True)
class Place:
    """A place; forms: "to", "at", and every form of its noun."""

    noun: Noun
    preposition: str
    to: str
    at: str

    def english(self, form: str, picks: Picks) -> str:
        if form in ("to", "at"):
            return f"{'to' if form == 'to' else self.preposition} the {self.noun.en}"
        return self.noun.english(form, picks)

    def german(self, form: str, picks: Picks) -> str:
        if form in ("to", "at"):
            return self.to if form == "to" else self.at
        return self.noun.german(form, picks)


_BE = {1: ("am", "was", "bin", "war"), 3: ("is", "was", "ist", "war"), 0: ("are", "were", "sind", "waren")}
_HAVE = {1: ("have", "habe", "hatte"), 3: ("has", "hat", "hatte"), 0: ("have", "haben", "hatten")}


@dataclass(frozen=True, slots=True)
class Subject:
    """Who does it; forms: "" the words, "be", "was", "have", "had", "do" the verb that goes with them."""

    en: str
    person: int
    de: str

    def english(self, form: str, picks: Picks) -> str:
        forms = {
            "": self.en,
            "be": _BE[self.person][0],
            "was": _BE[self.person][1],
            "have": _HAVE[self.person][0],
            "had": "had",
            "do": "does" if self.person == 3 else "do",
            "will": "will",
        }
        return forms[form]

    def german(self, form: str, picks: Picks) -> str:
        forms = {
            "": self.de,
            "be": _BE[self.person][2],
            "was": _BE[self.person][3],
            "have": _HAVE[self.person][1],
            "had": _HAVE[self.person][2],
            "will": {1: "werde", 3: "wird", 0: "werden"}[self.person],
            "can": {1: "kann", 3: "kann", 0: "können"}[self.person],
            "like": {1: "möchte", 3: "möchte", 0: "möchten"}[self.person],
        }
        return forms[form]


def _person(form: str, picks: Picks) -> int:
    """The person of a form such as "now/who": that of the subject named, or a literal person."""
    who = form.partition("/")[2]
    if who in ("0", "1", "3"):
        return int(who)
    subject = picks[who]
    return subject.person if isinstance(subject, Subject) else 3


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb; forms: "now/who", "past", "inf", "part", "aux/who", "rest" (what parts from it)."""

    en: tuple[str, str, str, str]
    infinitive: str
    prefix: str
    er: str
    participle: str
    moves: bool

    def english(self, form: str, picks: Picks) -> str:
        if form.startswith("now"):
            return self.en[1] if _person(form, picks) == 3 else self.en[0]
        return {"inf": self.en[0], "past": self.en[2], "part": self.en[3]}[form]

    def german(self, form: str, picks: Picks) -> str:
        if form.startswith("now"):
            return {1: self.infinitive[:-1], 3: self.er, 0: self.infinitive}[_person(form, picks)]
        if form.startswith("end"):  # the finite verb at the end of a clause
            return self._joined(self.german("now" + form[3:], picks))
        if form.startswith("aux"):
            person = _person(form, picks)
            return _BE[person][2] if self.moves else _HAVE[person][1]
        if form == "rest":
            return f" {self.prefix}" if self.prefix else ""
        if form == "inf":
            return self._joined(self.infinitive)
        if form == "zu":
            return self._joined(
                f"zu {self.infinitive}"
                if not self.prefix or self.prefix[0].isupper()
                else f"zu{self.infinitive}"
            )
        return {"part": self.participle}[form]

    def _joined(self, verb: str) -> str:
        return f"{self.prefix} {verb}" if self.prefix[:1].isupper() else self.prefix + verb


@dataclass(frozen=True, slots=True)
class Modal:
    en: str
    en_third: str
    plural: str
    ich: str
    er: str

    def english(self, form: str, picks: Picks) -> str:
        return self.en_third if _person(form, picks) == 3 else self.en

    def german(self, form: str, picks: Picks) -> str:
        return {1: self.ich, 3: self.er, 0: self.plural}[_person(form, picks)]


@dataclass(frozen=True, slots=True)
class Name:
    """A first name; forms: "" the name, "she" the pronoun, "herA" its accusative."""

    name: str
    woman: bool

    def english(self, form: str, picks: Picks) -> str:
        pronouns = {"she": ("he", "she"), "herA": ("him", "her")}
        return pronouns[form][self.woman] if form else self.name

    def german(self, form: str, picks: Picks) -> str:
        pronouns = {"she": ("er", "sie"), "herA": ("ihn", "sie")}
        return pronouns[form][self.woman] if form else self.name


def rows(table: str) -> list[list[str]]:
    """The rows of a table, each as its columns."""
    return [line.strip().split("|") for line in table.strip().splitlines()]


def _noun(row: list[str]) -> Noun:
    oblique = row[5] if len(row) > 5 else row[2]
    return Noun(row[0], row[1], row[2], "mfn".index(row[3]), row[4], oblique)


def _place(row: list[str]) -> Place:
    noun = Noun(row[0], row[0] + "s", row[2], "mfn".index(row[3]), row[2], row[2])
    return Place(noun, row[1], row[4], row[5])


def _verb(row: list[str]) -> Verb:
    return Verb((row[0], row[1], row[2], row[3]), row[4], row[5], row[6], row[7], row[8] == "s")


def _subject(row: list[str]) -> Subject:
    return Subject(row[0], int(row[1]), row[2])


@cache
def tables() -> dict[str, tuple[Entry, ...]]:
    """Every table of the lexicon by the name templates use."""
    found: dict[str, tuple[Entry, ...]] = {}
    for name, text in lexicon.NOUNS.items():
        found[name] = tuple(_noun(row) for row in rows(text))
    for name, text in lexicon.ADJECTIVES.items():
        found[name] = tuple(Adjective(row[0], row[1], row[-1]) for row in rows(text))
    for name, text in lexicon.VERBS.items():
        found[name] = tuple(_verb(row) for row in rows(text))
    for name, text in lexicon.PHRASES.items():
        found[name] = tuple(Phrase(*row) for row in rows(text))
    found["city"] = tuple(Phrase(*row) for row in rows(lexicon.CITIES))
    found["place"] = tuple(_place(row) for row in rows(lexicon.PLACES))
    found["modal"] = tuple(Modal(*row) for row in rows(lexicon.MODALS))
    found["who"] = tuple(_subject(row) for row in rows(lexicon.SUBJECTS))
    found |= _subsets(found)
    women, men = lexicon.WOMEN.split(), lexicon.MEN.split()
    found["name"] = tuple(Name(name, woman=name in women) for name in (*women, *men))
    return found


def _subsets(found: dict[str, tuple[Entry, ...]]) -> dict[str, tuple[Entry, ...]]:
    """Tables that are parts of others: subjects told of, those without name and family, men of the family."""
    told = [who for who in found["who"] if who.english("", {}) not in ("I", "you")]
    names = set((lexicon.WOMEN + lexicon.MEN).split())
    words = [(who, who.english("", {})) for who in told]
    strangers = [who for who, english in words if english not in names and not english.startswith("my ")]
    kinsmen = [noun for noun in found["relative"] if isinstance(noun, Noun) and noun.gender == 0]
    return {"other": tuple(told), "stranger": tuple(strangers), "kinsman": tuple(kinsmen)}


def pick(template: str, rng: random.Random, picks: dict[str, Entry]) -> None:
    """Draw an entry for every slot of a template that has none yet; slots of one table differ.

    A slot is a table's name, with a digit behind it where a template needs several of one table.
    """
    for slot, form in _SLOT.findall(template):
        for name in filter(None, (slot, form.partition("+")[2])):
            if name not in picks:
                picks[name] = _fresh(name, rng, picks)


def _fresh(name: str, rng: random.Random, picks: dict[str, Entry]) -> Entry:
    table = name.rstrip("0123456789")
    taken = [entry for other, entry in picks.items() if other.rstrip("0123456789") == table]
    return rng.choice([entry for entry in tables()[table] if entry not in taken])


def fill_english(template: str, picks: Picks) -> str:
    """The English of a template, its sentences beginning with a capital."""
    return _capitalised(_SLOT.sub(lambda slot: picks[slot[1]].english(slot[2] or "", picks), template))


def fill_german(template: str, picks: Picks) -> str:
    """The German of a template, its sentences beginning with a capital."""
    text = _SLOT.sub(lambda slot: picks[slot[1]].german(slot[2] or "", picks), template)
    return _capitalised(re.sub(r"\b([Ii])n dem\b", r"\1m", text))


def _capitalised(text: str) -> str:
    return re.sub(r"(^|[.!?] )(\w)", lambda found: found[1] + found[2].upper(), text)
