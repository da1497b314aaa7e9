"""LLaMA's SentencePiece tokenizer."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer


class TokenizerError(ValueError):
    """The tokenizer file is missing or cannot be read."""


class Tokenizer:
    """Text to ids and back, without ever adding BOS or EOS by itself. Thread-safe."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise TokenizerError(f"{path}: no such file")
        try:
            self._processor = SentencePieceProcessor(model_file=str(path))
        except (RuntimeError, OSError) as error:
            raise TokenizerError(f"{path}: not a SentencePiece model") from error

    @property
    def vocab_size(self) -> int:
        """Number of pieces."""
        return int(self._processor.vocab_size())

    @property
    def unk_id(self) -> int:
        """Id of the unknown piece, which decodes to a text of its own."""
        return int(self._processor.unk_id())

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; the empty text has none."""
        ids: list[int] = self._processor.encode(text)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; bytes that are no UTF-8 become U+FFFD, BOS and EOS become nothing."""
        text: str = self._processor.decode(list(ids))
        return text


def train_tokenizer(vocab_size: int, texts: Iterable[str], symbols: Sequence[str] = ()) -> bytes:
    """A SentencePiece BPE model with LLaMA's settings: byte fallback, ids 0 to 2.

    symbols: texts that are one piece each, whatever the counts say.
    """
    made = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=(text for text in texts if text),
        model_writer=made,
        model_type="bpe",
        vocab_size=vocab_size,
        byte_fallback=True,
        character_coverage=1.0,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=list(symbols),
        num_threads=1,
        minloglevel=2,
    )
    return made.getvalue()
