"""Manifests in the published layout: tab-separated, a header line, no quoting.

Everything that can be wrong is found before the first question is asked, and named by line and column.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from server.eval.extract import choice, options
from server.eval.tasks import KNOWN, Kind, canonical, kind_of, task_of_file
from server.eval.types import EvalError, Row

REQUIRED = ("id", "audio", "prompt", "tgt_text")
SEGMENTS = ("start_frame", "end_frame")
MAY_BE_EMPTY = frozenset({"prompt"})
"""A question may be in the audio alone, as in the published SQQA."""
MAX_FAULTS = 20
"""Faults that are shown; the rest are counted."""

_CSV_QUOTED = re.compile(r'"((?:[^"]|"")*)"')

Cells = dict[str, str]


def read_manifest(
    path: Path, *, task: str | None = None, audio_root: Path | None = None, is_scored: bool = True
) -> list[Row]:
    """All rows, in order. Raises EvalError with one line per fault.

    task: for rows without a task of their own; if None, what the file's name says. audio_root: where relative
    audio paths are looked for that do not exist beside the manifest. is_scored: whether references must fit
    their tasks.
    """
    lines = _lines(path)
    header = _header(path, lines)
    table = [(number, _cells(path, number, header, line)) for number, line in lines[1:]]
    default = canonical(task) if task else task_of_file(path.stem)
    faults = [fault for number, cells in table for fault in _faults(path, number, cells, default)]
    if is_scored:
        faults += [fault for number, cells in table for fault in _misfits(path, number, cells, default)]
    _raise_if_any(faults)
    if not table:
        raise EvalError(f"{path.name}: has no rows")
    finder = _AudioFinder([path.parent, *([audio_root] if audio_root else [])])
    audio = [finder.find(cells["audio"]) for _, cells in table]
    finder.check()
    return list(_rows([cells for _, cells in table], audio, default or ""))


def csv_quoting(rows: list[Row]) -> str:
    """A remark on prompts and references that look as if a program had quoted them, or ""."""
    columns = {"prompt": [row.prompt for row in rows], "tgt_text": [row.reference for row in rows]}
    found = [told for column, cells in columns.items() if (told := _quoted(column, rows, cells))]
    if not found:
        return ""
    return (
        f"{' and '.join(found)} is in quotes with doubled ones inside; "
        "manifests have no quoting, so these are taken as they are"
    )


def _quoted(column: str, rows: list[Row], cells: list[str]) -> str:
    insides = (_CSV_QUOTED.fullmatch(cell.strip()) for cell in cells)
    quoted = [row for row, inside in zip(rows, insides, strict=True) if inside and '""' in inside[1]]
    return f"{column} of {len(quoted)} rows (first: id {quoted[0].id})" if quoted else ""


def _lines(path: Path) -> list[tuple[int, str]]:
    """Lines that are not empty, with their numbers from 1. Only a line feed ends a line."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise EvalError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise EvalError(f"{path.name} line {number}: is not UTF-8") from error
    lines = ((number, line.rstrip("\r")) for number, line in enumerate(text.split("\n"), 1))
    return [(number, line) for number, line in lines if line.strip()]


def _header(path: Path, lines: list[tuple[int, str]]) -> list[str]:
    if not lines:
        raise EvalError(f"{path.name}: is empty; its first line must name the columns {', '.join(REQUIRED)}")
    number, line = lines[0]
    names = line.split("\t")
    where = f"{path.name} line {number}"
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise EvalError(f"{where}: the tab-separated header lacks {', '.join(missing)}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise EvalError(f"{where}: the header names the column {twice[0]} twice")
    cut = [name for name in SEGMENTS if name in names]
    if cut:
        raise EvalError(f"{where}, column {cut[0]}: parts of files are not supported; cut the audio first")
    return names


def _cells(path: Path, number: int, header: list[str], line: str) -> Cells:
    cells = line.split("\t")
    if len(cells) != len(header):
        last = header[min(len(cells), len(header)) - 1]
        raise EvalError(
            f"{path.name} line {number}, column {last}: the row has {len(cells)} columns, "
            f"the header {len(header)}"
        )
    return dict(zip(header, cells, strict=True))


def _faults(path: Path, number: int, cells: Cells, default_task: str | None) -> Iterator[str]:
    where = f"{path.name} line {number}"
    for name in REQUIRED:
        if name not in MAY_BE_EMPTY and not cells[name].strip():
            yield f"{where}, column {name}: is empty"
    if cells.get("with_speech", "True").strip().lower() not in ("true", "1", ""):
        yield f"{where}, column with_speech: only questions with audio (True) can be evaluated"
    if not cells.get("task", "").strip() and default_task is None:
        yield (
            f"{where}, column task: no task given, and the file's name says none; "
            f"add the column or use --task ({KNOWN})"
        )


def _misfits(path: Path, number: int, cells: Cells, default_task: str | None) -> Iterator[str]:
    """A choice whose reference chooses nothing would be wrong whatever is answered."""
    task = canonical(cells.get("task", "").strip() or default_task or "")
    if kind_of(task) is Kind.CHOICE and cells["tgt_text"].strip() and not _names_option(cells):
        yield (
            f"{path.name} line {number}, column tgt_text: is neither the letter nor the text of one of the "
            f"prompt's options, as {task} needs; give such rows a task of free text, as SQQA"
        )


def _names_option(cells: Cells) -> bool:
    return choice(cells["tgt_text"], options(cells["prompt"])) is not None


def _raise_if_any(faults: list[str]) -> None:
    if faults:
        more = [f"... and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
        raise EvalError("\n".join(faults[:MAX_FAULTS] + more))


@dataclass(slots=True)
class _AudioFinder:
    """Finds audio files under the roots, in this order, and remembers what went wrong."""

    roots: list[Path]
    _missing: dict[str, None] = field(default_factory=dict)
    _names: dict[str, tuple[str, bool]] = field(default_factory=dict)
    _clashes: dict[str, None] = field(default_factory=dict)

    def find(self, name: str) -> Path:
        """The file, or the name itself if `check` will raise."""
        found, is_exact = self._at(name), True
        if found is None:
            found, is_exact = self._find_shortened(name), False
        if found is None:
            self._missing[name] = None
            return Path(name)
        self._note(found, name, is_exact)
        return found

    def check(self) -> None:
        """Raise EvalError for files that were not found, or found for two names."""
        _raise_if_any([f"audio file not found: {name}" for name in self._missing])
        _raise_if_any(list(self._clashes))

    def _at(self, name: str | Path) -> Path | None:
        return next((path for path in (root / name for root in self.roots) if path.is_file()), None)

    def _find_shortened(self, name: str) -> Path | None:
        """The longest end of the path that exists.

        The published manifests name files from the top of their authors' tree, or of their disk.
        """
        parts = Path(name).parts
        shorter = (self._at(Path(*parts[start:])) for start in range(1, len(parts)))
        return next((found for found in shorter if found is not None), None)

    def _note(self, found: Path, name: str, is_exact: bool) -> None:
        """Two names of one file are a clash, unless both say just where it is ("a.wav", "./a.wav")."""
        first, first_is_exact = self._names.setdefault(os.path.abspath(found), (name, is_exact))
        if first != name and not (is_exact and first_is_exact):
            self._clashes[f"{found}: found for both {first} and {name}; use --audio-root"] = None


def _rows(table: list[Cells], audio: list[Path], default_task: str) -> Iterator[Row]:
    seen: Counter[str] = Counter()
    for cells, file in zip(table, audio, strict=True):
        task = canonical(cells.get("task", "").strip() or default_task)
        key = _digest([*(cells[name] for name in REQUIRED), task])
        seen[key] += 1
        texts = (cells["id"], task, cells["prompt"], cells["tgt_text"])
        yield Row(f"{key}-{seen[key]}", *texts, file, _mark(file))


def _mark(file: Path) -> str:
    facts = file.stat()
    return f"{facts.st_size}@{facts.st_mtime_ns}"


def _digest(values: list[str]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
