"""The ordinary sentences: enough of them, clean, and split so that no sentence is in two places."""

import re
import zlib
from pathlib import Path

import pytest

from training.sentence_sources import (
    SOURCES,
    book_sentences,
    is_ordinary,
    r_book_sentences,
    wordnet_examples,
    write,
)
from training.sentences import ordinary_sentences, sourced_sentences, split_of, words_of

WORDS = "the a cat sat on mat well-known don't it is Paris I never said Tom come in"
LEXICON = frozenset(WORDS.split())


def test_there_are_many_sentences_over_many_words() -> None:
    train = ordinary_sentences("train")
    words = {word for sentence in train for word in words_of(sentence)}
    assert len(train) > 40_000
    assert len(words) > 20_000


def test_validation_and_test_are_small_but_not_empty() -> None:
    assert 300 < len(ordinary_sentences("validation")) < 1000
    assert 700 < len(ordinary_sentences("test")) < 2000


def test_no_sentence_is_there_twice() -> None:
    sentences = [sentence.lower() for _, sentence in sourced_sentences()]
    assert len(set(sentences)) == len(sentences)


def test_the_splits_share_nothing_and_leave_nothing_out() -> None:
    splits = [set(ordinary_sentences(split)) for split in ("train", "validation", "test")]
    assert sum(map(len, splits)) == len(set().union(*splits)) == len(sourced_sentences())


def test_training_sees_nothing_of_the_books_held_out() -> None:
    held_out = {sentence for source, sentence in sourced_sentences() if source == "doctor-moreau"}
    assert held_out
    assert held_out <= set(ordinary_sentences("test"))


def test_the_same_sentence_is_in_the_same_split_whatever_its_case() -> None:
    assert split_of("wordnet", "The cat sat.") == split_of("wordnet", "the cat sat.")


def test_every_sentence_has_only_words_and_plain_marks() -> None:
    plain = re.compile(r"[A-Z][A-Za-z' ,-]*[.?!]")
    assert [sentence for _, sentence in sourced_sentences() if not plain.fullmatch(sentence)] == []


def test_every_sentence_is_of_a_good_length() -> None:
    sentences = [sentence for _, sentence in sourced_sentences()]
    assert all(3 <= len(sentence.split()) <= 18 and len(sentence) <= 100 for sentence in sentences)


def test_every_sentence_is_of_a_known_source() -> None:
    assert {source for source, _ in sourced_sentences()} == {source.key for source in SOURCES}


@pytest.mark.parametrize(
    "sentence", ["The cat sat.", "I never said it is a well-known mat, Tom.", "Come in, Tom!"]
)
def test_ordinary(sentence: str) -> None:
    assert is_ordinary(sentence, LEXICON)


@pytest.mark.parametrize(
    "sentence",
    [
        "The cat.",
        "The cat sat",
        "the cat sat.",
        "The 3 cat sat.",
        "The zzyx sat.",
        "The CAT sat.",
        "The paris sat.",
        "The cat; it sat.",
        "The cat sat  on.",
        "The thou sat.",
        "Mr Tom sat.",
        "The cat sat. It sat.",
        "The cat sat " + "on the mat " * 6 + ".",
    ],
)
def test_not_ordinary(sentence: str) -> None:
    assert not is_ordinary(sentence, LEXICON | {"thou", "Mr"})


def test_a_book_is_split_at_sentence_ends_and_loses_its_quotation_marks(tmp_path: Path) -> None:
    book = tmp_path / "book.txt"
    book.write_text(
        'CHAPTER I\n\n"Come in," said Mr. Cat.\n"Who sat\non it?"\n\nTom\'s _mat_ sat!\n', "utf-8"
    )
    expected = ["CHAPTER I", "Come in, said Mr Cat.", "Who sat on it?", "Tom's mat sat!"]
    assert [sentence for sentence in book_sentences(book) if sentence] == expected


def test_wordnet_gives_clauses_but_neither_definitions_nor_quotations_of_authors(tmp_path: Path) -> None:
    data = tmp_path / "data.verb"
    line = '0001 29 v | to sit; "the cat sat on it"; "a good mat"; "are you there"; "it is a mat"- Tom Cat'
    data.write_text(line + "\n", "ascii")
    assert list(wordnet_examples(data)) == ["The cat sat on it.", "Are you there?"]


def test_one_book_of_several_in_an_r_database(tmp_path: Path) -> None:
    def record(*lines: str) -> bytes:
        strings = b"".join(b"\0\4\0\x09" + len(line).to_bytes(4, "big") + line.encode() for line in lines)
        vector = b"X\n\0\0\0\3UTF-8\0\0\0\x10" + len(lines).to_bytes(4, "big") + strings
        return len(vector).to_bytes(4, "big") + zlib.compress(vector)

    database = tmp_path / "Rdata.rdb"
    database.write_bytes(record("EMMA", "", "The cat sat.") + record("PERSUASION", "", "Tom", "sat."))
    assert list(r_book_sentences(database, "persuasion")) == ["PERSUASION", "Tom sat."]


def test_the_same_sentences_give_the_same_file(tmp_path: Path) -> None:
    pairs = [("wordnet", "The cat sat."), ("emma", "Come in, Tom!")]
    write(pairs, tmp_path / "a.gz")
    write(pairs, tmp_path / "b.gz")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert set(sourced_sentences(tmp_path / "a.gz")) == set(pairs)
