"""Deltas against `decode` of everything, over every kind of piece, split anywhere."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.tiny import CORPUS
from model.tokenizer import Tokenizer, train_tokenizer
from server.engine.detokenizer import REPLACEMENT, Detokenizer

VOCAB = 420
UNK, BOS, EOS, FIRST_BYTE, NUM_BYTES = 0, 1, 2, 3, 256


@functools.cache
def tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.model"
        path.write_bytes(train_tokenizer(VOCAB, CORPUS))
        return Tokenizer(path)


def as_bytes(text: str | bytes) -> list[int]:
    """Ids of byte pieces."""
    data = text.encode() if isinstance(text, str) else text
    return [FIRST_BYTE + byte for byte in data]


@functools.cache
def lone_space() -> int:
    """The piece that is a space and nothing else."""
    ids = tokenizer().encode("Ω")
    return ids[0]


any_id = st.integers(0, VOCAB - 1)
byte_id = st.integers(FIRST_BYTE, FIRST_BYTE + NUM_BYTES - 1)
characters = st.text(st.sampled_from("aé ß漢😀\u200d👩\ufffd\n\x00"), max_size=4).map(as_bytes)
words = st.text(max_size=12).map(lambda text: tokenizer().encode(text))
spaces = st.integers(1, 3).map(lambda count: [lone_space()] * count)
specials = st.sampled_from([[UNK], [BOS], [EOS]])
runs = st.one_of(
    any_id.map(lambda i: [i]), st.lists(byte_id, max_size=5), characters, words, spaces, specials
)
answers = st.lists(runs, max_size=8).map(lambda parts: [i for part in parts for i in part])


@st.composite
def chunked(draw: st.DrawFn) -> list[list[int]]:
    """An answer in chunks of any size, empty ones among them."""
    ids = draw(answers)
    cuts = sorted(draw(st.lists(st.integers(0, len(ids)), max_size=len(ids) + 2)))
    return [ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)]


def feed(chunks: list[list[int]], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """Deltas as the core shows them, and whether a stop string came."""
    detokenizer = Detokenizer(tokenizer().decode, tokenizer().unk_id, stop)
    deltas = []
    for chunk in chunks:
        deltas.append(detokenizer.add(chunk))
        if detokenizer.stopped:
            break
    deltas.append(detokenizer.finish())
    return deltas, detokenizer.stopped


def flat(chunks: list[list[int]]) -> list[int]:
    return [i for chunk in chunks for i in chunk]


def test_the_pieces_used_here_are_what_their_names_say() -> None:
    decode = tokenizer().decode
    assert decode(as_bytes("é")) == "é"
    assert decode([*as_bytes("a"), lone_space(), *as_bytes("b")]) == "a b"
    assert decode([BOS, EOS]) == ""
    assert decode([UNK]).strip() == "⁇"


@settings(max_examples=600, deadline=None)
@given(chunked())
@example([[4], [5]])
def test_deltas_joined_are_the_text_of_all_ids(chunks: list[list[int]]) -> None:
    deltas, stopped = feed(chunks)
    assert "".join(deltas) == tokenizer().decode(flat(chunks))
    assert not stopped


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=12), st.data())
def test_no_delta_ends_in_half_a_character(text: str, data: st.DataObject) -> None:
    ids = as_bytes(text)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=len(ids))))
    deltas, _ = feed([ids[a:b] for a, b in zip([0, *cuts], [*cuts, len(ids)], strict=True)])
    assert "".join(deltas) == text
    assert not [delta for delta in deltas if REPLACEMENT in delta and REPLACEMENT not in text]


def test_text_goes_out_as_soon_as_it_is_final() -> None:
    ids = as_bytes("a€b")
    assert feed([[i] for i in ids])[0] == ["a", "", "", "€", "b", ""]


def test_an_unfinished_character_is_shown_as_such_only_at_the_end() -> None:
    assert feed([[i] for i in as_bytes("a€".encode()[:-1])])[0] == ["a", "", "", 2 * REPLACEMENT]


@pytest.mark.parametrize("leading", [1, 2, 3])
def test_leading_spaces_are_those_of_the_whole_text(leading: int) -> None:
    ids = [lone_space()] * leading + as_bytes("x")
    deltas, _ = feed([[i] for i in ids])
    assert "".join(deltas) == tokenizer().decode(ids) == " " * (leading - 1) + "x"


def cut_at_stop(text: str, stops: tuple[str, ...]) -> tuple[str, bool]:
    """The plain reference: read character by character; the first stop string to be complete ends it."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


few = "ab "
stop_strings = st.lists(st.text(few, min_size=1, max_size=4), min_size=1, max_size=4).map(tuple)


@settings(max_examples=600, deadline=None)
@given(st.lists(st.text(few, max_size=4).map(as_bytes), max_size=10), stop_strings)
@example([as_bytes("xabcd")], ("abcd", "bc"))
@example([as_bytes("xab"), as_bytes("cd")], ("abcd", "bc"))
def test_the_text_ends_before_the_first_stop_string(chunks: list[list[int]], stops: tuple[str, ...]) -> None:
    deltas, stopped = feed(chunks, stops)
    assert ("".join(deltas), stopped) == cut_at_stop(tokenizer().decode(flat(chunks)), stops)


@settings(max_examples=400, deadline=None)
@given(chunked(), st.data())
def test_any_part_of_the_text_may_be_a_stop_string(chunks: list[list[int]], data: st.DataObject) -> None:
    text = tokenizer().decode(flat(chunks))
    if not text:
        return
    start = data.draw(st.integers(0, len(text) - 1))
    stops = (text[start : data.draw(st.integers(start + 1, len(text)))], "never there")
    deltas, stopped = feed(chunks, stops)
    assert stopped
    assert ("".join(deltas), stopped) == cut_at_stop(text, stops)


def test_what_may_become_a_stop_string_is_held_back_and_then_shown() -> None:
    assert feed([as_bytes("Ans"), as_bytes("wer"), as_bytes("?")], ("Answer:",))[0] == ["", "", "Answer?", ""]


def test_nothing_follows_a_stop_string() -> None:
    detokenizer = Detokenizer(tokenizer().decode, tokenizer().unk_id, ("\n",))
    assert detokenizer.add(as_bytes("yes\nno")) == "yes"
    assert detokenizer.finish() == ""
