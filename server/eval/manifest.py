"""Manifests in the published layout: tab-separated, a header line, no quoting.

Everything that can be wrong is found before the first question is asked, and named by line and column.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from server.eval.tasks import KNOWN, canonical, task_of_file
from server.eval.types import EvalError, Row

REQUIRED = ("id", "audio", "prompt", "tgt_text")
SEGMENTS = ("start_frame", "end_frame")
MAY_BE_EMPTY = frozenset({"prompt"})
"""A question may be in the audio alone, as in the published SQQA."""
MAX_FAULTS = 20
"""Faults that are shown; the rest are counted."""

Cells = dict[str, str]


def read_manifest(path: Path, *, task: str | None = None, audio_root: Path | None = None) -> list[Row]:
    """All rows, in order. Raises EvalError with one line per fault.

    task: for rows without a task of their own; if None, what the file's name says. audio_root: where relative
    audio paths are looked for that do not exist beside the manifest.
    """
    lines = _lines(path)
    header = _header(path, lines)
    table = [(number, _cells(path, number, header, line)) for number, line in lines[1:]]
    default = canonical(task) if task else task_of_file(path.stem)
    faults = [fault for number, cells in table for fault in _faults(path, number, cells, default)]
    _raise_if_any(faults)
    if not table:
        raise EvalError(f"{path.name}: has no rows")
    finder = _AudioFinder([path.parent, *([audio_root] if audio_root else [])])
    audio = [finder.find(cells["audio"]) for _, cells in table]
    finder.check()
    return list(_rows([cells for _, cells in table], audio, default or ""))


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


def _raise_if_any(faults: list[str]) -> None:
    if faults:
        more = [f"... and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
        raise EvalError("\n".join(faults[:MAX_FAULTS] + more))


@dataclass(slots=True)
class _AudioFinder:
    """Finds audio files under the roots, in this order, and remembers what went wrong."""

    roots: list[Path]
    _missing: dict[str, None] = field(default_factory=dict)
    _shortened: dict[Path, str] = field(default_factory=dict)
    _clashes: list[str] = field(default_factory=list)

    def find(self, name: str) -> Path:
        """The file, or the name itself if `check` will raise."""
        for candidate in (root / name for root in self.roots):
            if candidate.is_file():
                return candidate
        found = self._find_shortened(name)
        if found is None:
            self._missing[name] = None
        return found or Path(name)

    def check(self) -> None:
        """Raise EvalError for files that were not found, or found for two names."""
        _raise_if_any([f"audio file not found: {name}" for name in self._missing])
        _raise_if_any(self._clashes)

    def _find_shortened(self, name: str) -> Path | None:
        """The longest end of the path that exists.

        The published manifests name files from the top of their authors' tree, or of their disk.
        """
        parts = Path(name).parts
        for start in range(1, len(parts)):
            for candidate in (root.joinpath(*parts[start:]) for root in self.roots):
                if candidate.is_file():
                    self._note(candidate, name)
                    return candidate
        return None

    def _note(self, found: Path, name: str) -> None:
        first = self._shortened.setdefault(found, name)
        if first != name:
            self._clashes.append(f"{found}: found for both {first} and {name}; use --audio-root")


def _rows(table: list[Cells], audio: list[Path], default_task: str) -> Iterator[Row]:
    seen: Counter[str] = Counter()
    for cells, file in zip(table, audio, strict=True):
        task = canonical(cells.get("task", "").strip() or default_task)
        key = _digest([*(cells[name] for name in REQUIRED), task])
        seen[key] += 1
        yield Row(f"{key}-{seen[key]}", cells["id"], task, cells["prompt"], cells["tgt_text"], file)


def _digest(values: list[str]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
