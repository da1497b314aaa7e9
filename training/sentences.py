"""Ordinary English sentences for speech to be made from: many words, no templates.

The sentences lie next to this file, compressed, one `source<TAB>sentence` a line, so training needs neither
a network nor the packages they came from. `training.sentence_sources` rebuilds that file.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Literal

Split = Literal["train", "validation", "test"]

DATA_FILE = Path(__file__).parent / "data" / "sentences.txt.gz"
HELD_OUT_BOOKS: dict[str, Split] = {"brother-jacob": "validation", "doctor-moreau": "test"}
"""Books of which training sees nothing, so that neither their authors nor their names are known to it."""
_VALIDATION_PERMILLE = 8
_TEST_PERMILLE = 15


def sentence_hash(sentence: str) -> int:
    """A number that stays the same for a sentence, whatever its case, on every machine."""
    return int.from_bytes(hashlib.sha256(sentence.lower().encode("ascii")).digest()[:8], "big")


def split_of(source: str, sentence: str) -> Split:
    """The split a sentence belongs to: that of its book when the book is held out, else by its hash."""
    if source in HELD_OUT_BOOKS:
        return HELD_OUT_BOOKS[source]
    permille = sentence_hash(sentence) % 1000
    if permille < _VALIDATION_PERMILLE:
        return "validation"
    return "test" if permille < _VALIDATION_PERMILLE + _TEST_PERMILLE else "train"


@cache
def sourced_sentences(path: Path = DATA_FILE) -> tuple[tuple[str, str], ...]:
    """All pairs of source and sentence, in an order that mixes the sources and never changes."""
    text = gzip.decompress(path.read_bytes()).decode("ascii")
    pairs = [(source, sentence) for source, _, sentence in (row.partition("\t") for row in text.splitlines())]
    return tuple(sorted(pairs, key=lambda pair: sentence_hash(pair[1])))


def ordinary_sentences(split: Split) -> list[str]:
    """The sentences of one split, mixed over the sources, in an order that never changes."""
    return [sentence for source, sentence in sourced_sentences() if split_of(source, sentence) == split]


def words_of(sentence: str) -> list[str]:
    """The words of a sentence, lower case and without punctuation."""
    return [word for word in (token.strip(",.?!") for token in sentence.lower().split()) if word]


def _statistics() -> str:
    """How many sentences, of which sources and lengths, over how many distinct words."""
    pairs = sourced_sentences()
    sources = Counter(source for source, _ in pairs)
    lengths = Counter(len(words_of(sentence)) for _, sentence in pairs)
    words = Counter(word for _, sentence in pairs for word in words_of(sentence))
    splits = Counter(split_of(source, sentence) for source, sentence in pairs)
    frequent = sum(count >= 5 for count in words.values())
    lines = [f"{len(pairs)} sentences, {len(words)} distinct words, {frequent} of them five times or more"]
    lines += [f"{name}: {count}" for name, count in [*splits.most_common(), *sources.most_common()]]
    lines += [f"{length} words: {lengths[length]}" for length in sorted(lengths)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(_statistics())
