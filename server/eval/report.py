"""What a run found: `report.json` for programs, `report.md` and pictures for people."""

from __future__ import annotations

import importlib.metadata
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from server.eval.answers import Settings
from server.eval.bootstrap import CONFIDENCE, RESAMPLES, SEED, interval
from server.eval.metrics import Metric
from server.eval.scoring import MAX_DRAWN, Confusion, Normalize, Scores, score
from server.eval.tasks import kind_of
from server.eval.types import Answer, Row

SCHEMA_VERSION = 1
LIBRARIES = ("jiwer", "sacrebleu", "transformers")


def make_report(
    rows: Sequence[Row],
    answers: Mapping[str, Answer],
    normalize: Normalize,
    *,
    settings: Settings,
    has_spelling: bool,
) -> dict[str, Any]:
    """The content of report.json. rows: those that were asked; questions that failed are in no metric."""
    tasks = dict.fromkeys(row.task for row in rows)
    asked = [answers[row.key] for row in rows]
    return {
        "schema_version": SCHEMA_VERSION,
        "settings": dict(settings),
        "num_rows": len(rows),
        "num_errors": sum(answer.error is not None for answer in asked),
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "confidence": CONFIDENCE},
        "normalizer": {"name": "transformers EnglishTextNormalizer", "spelling_mapping": has_spelling},
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "tasks": {task: _task(_of(task, rows), answers, normalize) for task in tasks},
    }


def write_report(report: dict[str, Any], directory: Path) -> None:
    """report.json, report.md, and confusion-TASK.png where a task has classes, but not too many."""
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    (directory / "report.json").write_text(text + "\n", encoding="utf-8")
    (directory / "report.md").write_text(markdown(report), encoding="utf-8")
    for task, found in report["tasks"].items():
        name = re.sub(r"[^\w.-]", "_", task)
        path = directory / f"confusion-{name}.png"
        path.unlink(missing_ok=True)  # of the run before, with fewer rows
        if found["confusion"] is not None and _num_classes(found) <= MAX_DRAWN:
            from server.eval.plot import plot_confusion  # loads matplotlib, which takes a second

            plot_confusion(found["confusion"], f"{task}: answers by reference", path)


def markdown(report: dict[str, Any]) -> str:
    """Tables of the report's numbers."""
    lines = [
        "# Evaluation",
        "",
        *(f"- {name}: {value}" for name, value in report["settings"].items() if value is not None),
        f"- rows: {report['num_rows']}, of which {report['num_errors']} failed and are in no metric",
        "",
        "| task | answers | metric | value | 95 % interval |",
        "|---|---|---|---|---|",
    ]
    for task, found in report["tasks"].items():
        num = found["num_answered"]
        lines += [_line(task, num, name, metric) for name, metric in found["metrics"].items()]
    return "\n".join([*lines, "", *_notes(report), ""])


def _num_classes(found: dict[str, Any]) -> int:
    confusion = found["confusion"] or {"labels": (), "columns": ()}
    return max(len(confusion["labels"]), len(confusion["columns"]))


def _of(task: str, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.task == task]


def _task(rows: Sequence[Row], answers: Mapping[str, Answer], normalize: Normalize) -> dict[str, Any]:
    answered = [(row, answers[row.key]) for row in rows if answers[row.key].error is None]
    task = rows[0].task
    pairs = [(row, answer.text) for row, answer in answered]
    scores = score(task, pairs, normalize) if pairs else Scores(())
    return {
        "kind": kind_of(task).value,
        "num_rows": len(rows),
        "num_answered": len(answered),
        "num_errors": len(rows) - len(answered),
        "num_cut_short": sum(answer.finish_reason == "length" for _, answer in answered),
        "metrics": {metric.name: _metric(metric) for metric in scores.metrics},
        "signatures": scores.signatures,
        "confusion": _confusion(scores.confusion),
    }


def _metric(metric: Metric) -> dict[str, Any]:
    bounds = interval(metric.rows, metric.of_sums)
    value = metric.value
    return {
        "value": round(value, 6) if math.isfinite(value) else None,
        "low": round(bounds[0], 6) if bounds else None,
        "high": round(bounds[1], 6) if bounds else None,
        "unit": "share" if metric.is_share else "points",
        "num_rows": len(metric.rows),
    }


def _confusion(confusion: Confusion | None) -> dict[str, Any] | None:
    if confusion is None:
        return None
    counts = [list(row) for row in confusion.counts]
    return {"labels": list(confusion.labels), "columns": list(confusion.columns), "counts": counts}


def _line(task: str, num_answered: int, name: str, metric: dict[str, Any]) -> str:
    head = f"| {task} | {num_answered} | {name} |"
    if metric["value"] is None:
        return f"{head} undefined | |"
    factor, unit = (100, " %") if metric["unit"] == "share" else (1, "")
    value, low, high = (f"{factor * metric[key]:.2f}" for key in ("value", "low", "high"))
    return f"{head} {value}{unit} | {low} to {high} |"


def _notes(report: dict[str, Any]) -> list[str]:
    notes = [f"Intervals: percentile bootstrap over rows, {RESAMPLES} resamples, seed {SEED}."]
    tasks = report["tasks"].items()
    if any(found["kind"] == "transcription" for _, found in tasks):
        has_spelling = report["normalizer"]["spelling_mapping"]
        spelling = "with a" if has_spelling else "without a (transformers ships none)"
        notes.append(f"WER, CER: Whisper's English normaliser of transformers, {spelling} spelling mapping.")
    notes += [f"{task} {name}: {sign}" for task, found in tasks for name, sign in found["signatures"].items()]
    notes += [
        f"{task}: no picture of the confusion matrix: {_num_classes(found)} classes, {MAX_DRAWN} at most."
        for task, found in tasks
        if _num_classes(found) > MAX_DRAWN
    ]
    notes += [
        f"{task}: {found['num_cut_short']} answers were cut at the longest length allowed."
        for task, found in tasks
        if found["num_cut_short"]
    ]
    return [f"- {note}" for note in notes]
