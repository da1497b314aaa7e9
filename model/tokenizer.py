"""LLaMA's SentencePiece tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sentencepiece import SentencePieceProcessor


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
