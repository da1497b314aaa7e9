"""Whisper's English normaliser, as transformers ships it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

from server.eval.types import EvalError


def english_normalizer(spelling: Path | None) -> Callable[[str], str]:
    """Text -> lower case, no punctuation, contractions and numbers in one form.

    spelling: JSON {British: American}; transformers does not ship Whisper's own, and without it spellings
    stay as they are. Raises EvalError if the file is not such a mapping.
    """
    make: Callable[[dict[str, str]], Callable[[str], str]] = EnglishTextNormalizer
    normalize = make({} if spelling is None else _read_mapping(spelling))
    return lambda text: normalize(text).strip()


def _read_mapping(path: Path) -> dict[str, str]:
    try:
        mapping = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvalError(f"--spelling: {path} cannot be read as JSON: {error}") from error
    if not isinstance(mapping, dict) or not all(isinstance(word, str) for word in mapping.values()):
        raise EvalError(f"--spelling: {path} is not a JSON object of words")
    return mapping
