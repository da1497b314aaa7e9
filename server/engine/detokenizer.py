"""Token ids -> text deltas that never split a character and never show a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

Decode = Callable[[Sequence[int]], str]


class Detokenizer:
    """Incremental decoding of one answer; the deltas joined equal `decode` of all its ids.

    SentencePiece drops one leading space, but only from the start of a text. So once some text is out, the
    ids not yet shown are decoded behind a stand-in token (the unknown piece, which never is empty), and its
    text is cut off again. Text that ends in a replacement character may be an unfinished byte sequence and
    is held back until the next token or the end.
    """

    def __init__(self, decode: Decode, unk_id: int, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._unk_id = unk_id
        self._stop = stop
        self._ids: list[int] = []
        self._started = False
        self._held = ""
        self.stopped = False

    def add(self, ids: Sequence[int]) -> str:
        """Text that became final with these ids. Sets `stopped` once a stop string has come."""
        self._ids.extend(ids)
        text = self._pending_text()
        if not text or text.endswith(REPLACEMENT):
            return ""
        self._take()
        return self._show(self._held + text)

    def finish(self) -> str:
        """The rest of the text, when no id follows."""
        if self.stopped:
            return ""
        text = self._held + self._pending_text()
        self._take()
        shown = self._show(text)
        rest, self._held = self._held, ""
        return shown + rest

    def _pending_text(self) -> str:
        if not self._started:
            return self._decode(self._ids)
        return self._decode([self._unk_id, *self._ids])[len(self._decode([self._unk_id])) :]

    def _take(self) -> None:
        self._started = True
        self._ids.clear()

    def _show(self, text: str) -> str:
        """What of `text` can go out: up to a stop string, or short of what may become one.

        Of several stop strings the one that is complete first counts, so that the answer does not hang on
        how its text fell into tokens.
        """
        self._held = ""
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)[1]]
        hold = max((_overlap(text, stop) for stop in self._stop), default=0)
        cut = len(text) - hold
        self._held = text[cut:]
        return text[:cut]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
