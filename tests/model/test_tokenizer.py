"""LLaMA's tokenizer: what it adds, what it keeps, what it refuses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from model.tiny import CORPUS
from model.tokenizer import Tokenizer, TokenizerError, train_tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    path.write_bytes(train_tokenizer(400, CORPUS))
    return Tokenizer(path)


def test_the_tokenizer_has_the_settings_of_llama(tokenizer: Tokenizer, directory: Path) -> None:
    plain = SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    special = (plain.unk_id(), plain.bos_id(), plain.eos_id(), plain.pad_id())
    assert special == (0, 1, 2, -1)
    assert plain.is_byte(3)
    assert tokenizer.vocab_size == plain.vocab_size() == 400
    assert tokenizer.unk_id == 0


def test_the_empty_text_has_no_ids(tiny: Tokenizer) -> None:
    assert tiny.encode("") == []
    assert tiny.decode([]) == ""


@given(text=st.text(max_size=40))
def test_any_text_survives_and_takes_no_control_token(tiny: Tokenizer, text: str) -> None:
    ids = tiny.encode(text)
    assert not set(ids) & {0, 1, 2}
    assert tiny.decode(ids) == text.replace("\u2581", " ")


def test_control_tokens_decode_to_nothing_and_broken_bytes_to_replacements(tiny: Tokenizer) -> None:
    ids = tiny.encode("yes")
    assert tiny.decode([1, *ids, 2]) == "yes"
    assert tiny.decode((*ids, 3 + 0xE2)) == "yes\ufffd"


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: no such file"):
        Tokenizer(path)
    for content in (b"", b"no model", b"\x0a" * 100):
        path.write_bytes(content)
        with pytest.raises(TokenizerError, match=r"tokenizer\.model: not a SentencePiece model"):
            Tokenizer(path)


def test_threads_do_not_disturb_each_other(tiny: Tokenizer) -> None:
    texts = [f"the {i} quick brown foxes, {i} times" * 20 for i in range(40)]
    with ThreadPoolExecutor(8) as pool:
        assert [tiny.decode(ids) for ids in pool.map(tiny.encode, texts)] == texts
