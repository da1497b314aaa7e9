"""From the answers of one task to its metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from server.eval import extract, metrics, words
from server.eval.metrics import Metric
from server.eval.tasks import Kind, bleu_tokenizer, kind_of
from server.eval.types import Row

NO_ANSWER = "(none)"
"""The confusion matrix's column for answers from which no class could be extracted."""

MAX_DRAWN = 40
"""Classes of a confusion matrix, by reference or by answer, that a picture can show."""

Normalize = Callable[[str], str]
Pairs = Sequence[tuple[Row, str]]


@dataclass(frozen=True, slots=True)
class Confusion:
    """counts[i][j]: answers that chose `columns[j]` where the reference was `labels[i]`."""

    labels: tuple[str, ...]
    columns: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """Metrics of one task, and what belongs to them."""

    metrics: tuple[Metric, ...]
    confusion: Confusion | None = None
    signatures: dict[str, str] = field(default_factory=dict)


def score(task: str, pairs: Pairs, normalize: Normalize) -> Scores:
    """pairs: rows of this task, at least one, with their answers. normalize: for WER and CER."""
    references, answers = [row.reference for row, _ in pairs], [answer for _, answer in pairs]
    match kind_of(task):
        case Kind.TRANSCRIPTION:
            return _transcription([normalize(r) for r in references], [normalize(a) for a in answers])
        case Kind.TRANSLATION:
            return _translation(references, answers, bleu_tokenizer(task))
        case Kind.SPEAKERS:
            return _classes(*_speakers(pairs))
        case Kind.EMOTION:
            return _classes(*_emotions(references, answers))
        case Kind.CHOICE:
            return _classes(*_choices(pairs))
        case Kind.STEPS:
            return _steps(pairs)
        case _:
            return _text(references, answers)


def _transcription(references: list[str], answers: list[str]) -> Scores:
    return Scores((metrics.wer(references, answers), metrics.cer(references, answers), _spoken(answers)))


def _translation(references: list[str], answers: list[str], tokenizer: str) -> Scores:
    found = (
        metrics.bleu(references, answers, tokenizer),
        metrics.chrf(references, answers),
        metrics.exact_match(references, answers),
        _spoken(answers),
    )
    return Scores(found, signatures=metrics.signatures(tokenizer))


def _text(references: list[str], answers: list[str]) -> Scores:
    found = (
        metrics.exact_match(references, answers),
        metrics.token_f1(references, answers),
        metrics.chrf(references, answers),
        _spoken(answers),
    )
    return Scores(found, signatures=metrics.signatures(None))


def _steps(pairs: Pairs) -> Scores:
    """Several instructions in one prompt; a reference is the last one's, or a list of labels."""
    wanted = [extract.num_instructions(row.prompt, row.reference) for row, _ in pairs]
    cut = [extract.parts(answer, count) for (_, answer), count in zip(pairs, wanted, strict=True)]
    followed = metrics.share(
        "instruction_following", [len(parts) >= count for parts, count in zip(cut, wanted, strict=True)]
    )
    texts = [
        (row.reference, answer, parts[-1] if parts else "")
        for (row, answer), parts in zip(pairs, cut, strict=True)
        if not extract.is_labels(row.reference)
    ]
    if not texts:
        return Scores((followed,))
    plain = [tuple(words.plain(text) for text in texts_of_row) for texts_of_row in texts]
    exact = metrics.share("exact_match", [reference in (answer, last) for reference, answer, last in plain])
    final = metrics.chrf([text[0] for text in texts], [text[2] for text in texts], "chrf_last_part")
    return Scores((followed, exact, final), signatures=metrics.signatures(None))


def _speakers(pairs: Pairs) -> tuple[list[str], list[str | None]]:
    wanted = [extract.speaker_reference(row.reference) for row, _ in pairs]
    asked = zip(wanted, pairs, strict=True)
    return wanted, [extract.speakers(answer, row.prompt, want) for want, (row, answer) in asked]


def _emotions(references: list[str], answers: list[str]) -> tuple[list[str], list[str | None]]:
    wanted = [extract.emotion_reference(reference) for reference in references]
    return wanted, [extract.emotion(answer, set(wanted)) for answer in answers]


def _choices(pairs: Pairs) -> tuple[list[str], list[str | None]]:
    choices = [extract.options(row.prompt) for row, _ in pairs]
    both = list(zip(pairs, choices, strict=True))
    wanted = [extract.choice_reference(row.reference, options) for (row, _), options in both]
    return wanted, [extract.choice(answer, options) for (_, answer), options in both]


def _classes(wanted: list[str], chosen: list[str | None]) -> Scores:
    """Accuracy over all rows and over those that were answered in form, which are counted apart."""
    right = [want == choice for want, choice in zip(wanted, chosen, strict=True)]
    followed = [choice is not None for choice in chosen]
    found = (
        metrics.share("accuracy", right),
        metrics.share("accuracy_followed", right, followed),
        metrics.share("instruction_following", followed),
    )
    return Scores(found, confusion=_confusion(wanted, chosen))


def _confusion(wanted: list[str], chosen: list[str | None]) -> Confusion:
    labels = tuple(sorted(set(wanted)))
    others = tuple(sorted({choice for choice in chosen if choice is not None} - set(labels)))
    columns = (*labels, *others, NO_ANSWER)
    counted = Counter((want, choice or NO_ANSWER) for want, choice in zip(wanted, chosen, strict=True))
    return Confusion(labels, columns, tuple(tuple(counted[label, c] for c in columns) for label in labels))


def _spoken(answers: list[str]) -> Metric:
    """Free text is in form as soon as there is any."""
    return metrics.share("instruction_following", [bool(words.plain(answer)) for answer in answers])
