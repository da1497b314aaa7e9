"""The answers of a run on disk: appended as they come, found again by the next run with the same settings."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from server.eval.types import Answer, EvalError, Row

ANSWERS = "answers.jsonl"
SETTINGS = "run.json"
RESULTS = (ANSWERS, SETTINGS, "report.json", "report.md")

NO_SETTINGS = frozenset({"random_weights"})
"""What run.json tells of the model without that a run is refused for it."""

Settings = Mapping[str, str | int | None]


class AnswerFile:
    """One run's `answers.jsonl`; a context manager. Lines: the row, and what `Answer` has.

    Holds a lock, so that two runs never write into one directory. Raises EvalError if it is taken, or if the
    directory has answers of a run with other settings, rows or audio. `begin` comes before the first `add`.
    settings: those of the run, and what is known of the model.
    """

    def __init__(
        self, directory: Path, settings: Settings, rows: list[Row], *, overwrite: bool = False
    ) -> None:
        self._directory = directory
        self.settings = settings
        self._overwrite = overwrite
        self._rows = {row.key: row for row in rows}
        directory.mkdir(parents=True, exist_ok=True)
        self._file = _locked(directory / ANSWERS)
        try:
            self.answers = {} if overwrite else self._resume()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> AnswerFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def begin(self, *, random_weights: bool) -> None:
        """Whoever answers is there: write down what the answers depend on, and drop those of another run."""
        if self._overwrite:
            self._clear()
        self.settings = {**self.settings, "random_weights": random_weights}
        _write_whole(self._directory / SETTINGS, json.dumps(self.settings, indent=2) + "\n")

    def add(self, row: Row, answer: Answer) -> None:
        """Keep an answer, on disk before anything else happens."""
        asked = {
            "row": row.key,
            "id": row.id,
            "task": row.task,
            "prompt": row.prompt,
            "reference": row.reference,
            "audio": row.audio_mark,
        }
        said = asdict(answer)
        record = asked | {"answer": said.pop("text")} | said
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()
        self.answers[row.key] = answer

    def _clear(self) -> None:
        self._file.truncate(0)
        stale = [self._directory / name for name in RESULTS if name != ANSWERS]
        for path in (*stale, *self._directory.glob("confusion-*.png")):
            path.unlink(missing_ok=True)

    def _resume(self) -> dict[str, Answer]:
        text = _whole_lines(self._directory / ANSWERS, self._file)
        if text:
            self._check_settings()
        return dict(self._read(text))

    def _check_settings(self) -> None:
        settings = self.settings
        try:
            before = json.loads((self._directory / SETTINGS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            before = None
        if not isinstance(before, dict):
            raise self._refusal(f"{SETTINGS} cannot be read")
        names = [name for name in {**before, **settings} if name not in NO_SETTINGS]
        changed = [name for name in names if before.get(name) != settings.get(name)]
        if changed:
            name = changed[0]
            raise self._refusal(f"{name} was {before.get(name)!r} and is now {settings.get(name)!r}")
        self.settings = {**settings, **{name: before[name] for name in NO_SETTINGS if name in before}}

    def _read(self, text: str) -> Iterator[tuple[str, Answer]]:
        """Later lines win: a failed question may have been asked again."""
        for number, line in enumerate(text.split("\n")[:-1], 1):  # texts may hold other line ends
            try:
                record = json.loads(line)
                key, answer = _answer(record)
            except (ValueError, KeyError, TypeError) as error:
                raise self._refusal(f"{ANSWERS} line {number} is not an answer") from error
            if key not in self._rows:
                raise self._refusal(f"{ANSWERS} line {number} answers a row that the manifest does not have")
            self._check_audio(record, answer)
            yield key, answer

    def _check_audio(self, record: dict[str, Any], answer: Answer) -> None:
        """A question that failed is asked again anyway, perhaps because its file was mended."""
        row = self._rows[record["row"]]
        if answer.error is None and record.get("audio", row.audio_mark) != row.audio_mark:
            raise self._refusal(f"row {row.id} was answered from another audio file than {row.audio} now is")

    def _refusal(self, why: str) -> EvalError:
        return EvalError(f"{self._directory}: holds another run: {why}; use another --output, or --overwrite")


def _answer(record: dict[str, Any]) -> tuple[str, Answer]:
    names = ("finish_reason", "latency_ms", "error")
    return record["row"], Answer(record["answer"], *(record[name] for name in names))


def _write_whole(path: Path, text: str) -> None:
    """All of it or, if this is killed on the way, what was there before."""
    unfinished = path.with_name(f"{path.name}.tmp")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def _locked(path: Path) -> TextIO:
    file = path.open("a", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise EvalError(f"{path.parent}: {_why_unlocked(error)}") from error
    return file


def _why_unlocked(error: OSError) -> str:
    if isinstance(error, BlockingIOError):
        return "another run is writing here"
    return f"cannot lock: {error.strerror}; use --output on another file system"


def _whole_lines(path: Path, file: TextIO) -> str:
    """The file's text; a last line that was cut by a kill is taken off, on disk too."""
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) != len(data):
        file.truncate(len(whole))
    return whole.decode("utf-8", errors="replace")
