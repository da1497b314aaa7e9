"""One evaluation from the manifest to the report."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.eval.answers import AnswerFile, Settings
from server.eval.ask import ask_all
from server.eval.manifest import csv_quoting, read_manifest
from server.eval.types import Answer, Answerer, Bar, EvalError, Row
from server.settings import DEFAULT_MODEL_DIR
from server.types import EngineConfig

_RANDOM = "the weights are random, the numbers mean nothing"
EXTRA = ("jiwer", "sacrebleu", "matplotlib", "httpx")


@dataclass(frozen=True, slots=True)
class Plan:
    """What to evaluate, how, and where the results go. server: a URL; None: in this process."""

    manifest: Path
    server: str | None
    api_key: str | None
    model: Path | None
    device: str
    dtype: str
    task: str | None
    audio_root: Path | None
    output: Path | None
    concurrency: int
    max_tokens: int
    limit: int | None
    spelling: Path | None
    overwrite: bool

    @property
    def directory(self) -> Path:
        """Where the results go."""
        return self.output or Path("eval-results") / self.manifest.stem

    @property
    def model_dir(self) -> Path:
        """The directory to load."""
        return self.model or DEFAULT_MODEL_DIR


@dataclass(frozen=True, slots=True)
class Outcome:
    """The report, and a remark for the operator or ""."""

    report: dict[str, Any]
    remark: str


def check_extra() -> None:
    """Raise EvalError if a library that only the evaluation needs is missing."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise EvalError(f"eval needs {', '.join(missing)}: run `pip install -e '.[eval]'`")


async def evaluate(plan: Plan, bar: Bar, warn: Callable[[str], None]) -> Outcome:
    """Ask what has not been answered yet, then report on all of it. Raises EvalError.

    warn: told at once what may be wrong with the manifest.
    """
    check_extra()
    from server.eval.normalizer import english_normalizer
    from server.eval.report import make_report, write_report

    rows = read_manifest(plan.manifest, task=plan.task, audio_root=plan.audio_root)
    if quoting := csv_quoting(rows):
        warn(quoting)
    normalize = english_normalizer(plan.spelling)
    asked = rows[: plan.limit]
    settings, answers = await (_over_http if plan.server else _in_process)(plan, rows, asked, bar)
    told = {**settings, **_origin(plan)}
    report = make_report(asked, answers, normalize, settings=told, has_spelling=plan.spelling is not None)
    write_report(report, plan.directory)
    return Outcome(report, _RANDOM if settings.get("random_weights") else "")


Asked = tuple[Settings, dict[str, Answer]]


async def _over_http(plan: Plan, rows: list[Row], asked: Sequence[Row], bar: Bar) -> Asked:
    from server.eval.over_http import HttpAnswerer

    async with contextlib.aclosing(
        HttpAnswerer(plan.server or "", plan.api_key, plan.max_tokens)
    ) as answerer:
        with bar("Reaching the server") as on_wait:
            served = await answerer.served_model(on_wait)
        settings = _settings(plan, source="server", model=served.name, fingerprint=served.fingerprint)
        with AnswerFile(plan.directory, settings, rows, overwrite=plan.overwrite) as file:
            file.begin(random_weights=served.random_weights)
            await _ask(plan, asked, answerer, file, bar)
            return file.settings, file.answers


async def _in_process(plan: Plan, rows: list[Row], asked: Sequence[Row], bar: Bar) -> Asked:
    from server.engine.fingerprint import fingerprint
    from server.eval.in_process import LocalAnswerer

    settings = _settings(plan, source="process", model=fingerprint(plan.model_dir))
    config = EngineConfig(plan.model_dir, device=plan.device, dtype=plan.dtype)
    with AnswerFile(plan.directory, settings, rows, overwrite=plan.overwrite) as file:
        if not _unanswered(asked, file):
            return file.settings, file.answers  # nothing to load a model for: the report alone is made again
        with bar("Loading the model") as on_progress:
            answerer = LocalAnswerer(config, plan.max_tokens, on_progress)
            await answerer.start()
        async with contextlib.aclosing(answerer):
            file.begin(random_weights=answerer.has_random_weights)
            await _ask(plan, asked, answerer, file, bar)
            return file.settings, file.answers


async def _ask(plan: Plan, asked: Sequence[Row], answerer: Answerer, file: AnswerFile, bar: Bar) -> None:
    todo = _unanswered(asked, file)
    done = len(asked) - len(todo)
    with bar("Evaluating") as report:

        def record(row: Row, answer: Answer) -> None:
            nonlocal done
            file.add(row, answer)
            done += 1
            report(done, len(asked), row.id)

        await ask_all(todo, answerer, plan.concurrency, record)


def _unanswered(asked: Sequence[Row], file: AnswerFile) -> list[Row]:
    """Rows without an answer; one that failed is asked again."""
    return [row for row in asked if row.key not in file.answers or file.answers[row.key].error is not None]


def _settings(plan: Plan, *, source: str, model: str, fingerprint: str | None = None) -> Settings:
    """What the answers depend on, beside the rows. fingerprint: where the model's name does not hold it."""
    local = {"device": plan.device, "dtype": plan.dtype} if source == "process" else {}
    marked = {"fingerprint": fingerprint} if fingerprint else {}
    told = {"max_tokens": plan.max_tokens, "temperature": 0}
    return {"source": source, "model": model, **marked, **local, **told}


def _origin(plan: Plan) -> Settings:
    """Where the rows come from, for the reader; what they hold is what answers depend on."""
    root = None if plan.audio_root is None else str(plan.audio_root)
    return {"manifest": str(plan.manifest), "audio_root": root}
