"""Metrics as statistics of single rows and a function of their sums, so that each can be resampled.

WER's edits are jiwer's and BLEU's counts sacrebleu's. chrF counts its n-grams here, because sacrebleu shows
no counts per sentence; tests hold both scores equal to sacrebleu's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jiwer
import numpy as np
from sacrebleu import BLEU, CHRF

from server.eval.bootstrap import Array, OfSums
from server.eval.words import plain

CHRF_ORDER = 6
BLEU_ORDER = 4
_CHRF_BETA = 2.0


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric of one task. rows: [n, k], n >= 1, the statistics of each row; of_sums: [..., k] -> [...].

    is_share: a part of 1 (or of the reference's words); otherwise points out of 100.
    """

    name: str
    rows: Array
    of_sums: OfSums
    is_share: bool = True

    @property
    def value(self) -> float:
        """The metric over all rows; NaN where it is not defined."""
        return float(self.of_sums(self.rows.sum(axis=0)))


def share(name: str, hits: Iterable[float], among: Iterable[float] | None = None) -> Metric:
    """Sum of `hits` over the sum of `among` (1 for each row unless given)."""
    hits = np.array(list(hits), dtype=np.float64)
    among = np.ones(len(hits)) if among is None else np.array(list(among), dtype=np.float64)
    return Metric(name, np.stack([hits, among], axis=1), _ratio)


def wer(references: Sequence[str], answers: Sequence[str]) -> Metric:
    """Word error rate of normalised texts: substitutions, deletions and insertions over reference words."""
    outputs = [jiwer.process_words(*pair) for pair in zip(references, answers, strict=True)]
    return _error_rate("wer", outputs)


def cer(references: Sequence[str], answers: Sequence[str]) -> Metric:
    """The same over characters, spaces among them."""
    outputs = [jiwer.process_characters(*pair) for pair in zip(references, answers, strict=True)]
    return _error_rate("cer", outputs)


def bleu(references: Sequence[str], answers: Sequence[str], tokenizer: str) -> Metric:
    """Corpus BLEU with sacrebleu's defaults: up to 4-grams, exponential smoothing."""
    counter = BLEU(tokenize=tokenizer, effective_order=True)  # only its counts are taken; they are the same
    scores = [counter.sentence_score(a, [r]) for r, a in zip(references, answers, strict=True)]
    rows = [[score.sys_len, score.ref_len, *score.counts, *score.totals] for score in scores]
    return Metric("bleu", np.array(rows, dtype=np.float64), _bleu_of_sums, is_share=False)


def chrf(references: Sequence[str], answers: Sequence[str], name: str = "chrf") -> Metric:
    """Corpus chrF2 with sacrebleu's defaults: character 1- to 6-grams without spaces."""
    rows = [_chrf_counts(r, a) for r, a in zip(references, answers, strict=True)]
    return Metric(name, np.array(rows, dtype=np.float64), _chrf_of_sums, is_share=False)


def exact_match(references: Sequence[str], answers: Sequence[str]) -> Metric:
    """Share of answers that equal the reference but for case and punctuation."""
    return share("exact_match", [plain(r) == plain(a) for r, a in zip(references, answers, strict=True)])


def token_f1(references: Sequence[str], answers: Sequence[str]) -> Metric:
    """Mean over rows of the F1 of words, counted as a bag, without case and punctuation."""
    return share("token_f1", [_f1(plain(r), plain(a)) for r, a in zip(references, answers, strict=True)])


def signatures(tokenizer: str | None) -> dict[str, str]:
    """sacrebleu's signatures of chrF and, if given a tokenizer, BLEU, as defined above."""
    scorers: dict[str, BLEU | CHRF] = {"chrf": CHRF()}
    if tokenizer is not None:
        scorers["bleu"] = BLEU(tokenize=tokenizer)
    for scorer in scorers.values():
        scorer.corpus_score([""], [[""]])  # it learns the number of references from a score
    return {name: str(scorer.get_signature()) for name, scorer in scorers.items()}


def _error_rate(name: str, outputs: Sequence[jiwer.WordOutput] | Sequence[jiwer.CharacterOutput]) -> Metric:
    edits = [output.substitutions + output.deletions + output.insertions for output in outputs]
    lengths = [output.substitutions + output.deletions + output.hits for output in outputs]
    return share(name, edits, lengths)


def _ratio(sums: Array) -> Array:
    return _divide(sums[..., 0], sums[..., 1], np.nan)


def _divide(above: Array, below: Array, otherwise: float) -> Array:
    """above / below, and `otherwise` where below is 0."""
    result: Array = np.divide(
        above, below, out=np.full(np.shape(above), otherwise), where=np.asarray(below) > 0
    )
    return result


def _bleu_of_sums(sums: Array) -> Array:
    """sums: [..., 10]: answer words, reference words, 4 counts of matches, 4 of n-grams -> [...]."""
    answer, reference = sums[..., 0], sums[..., 1]
    hits, totals = sums[..., 2 : 2 + BLEU_ORDER], sums[..., 2 + BLEU_ORDER :]
    # Smoothing: the first order without a match counts half a match, the next a quarter, and so on.
    halvings = np.cumsum(hits == 0, axis=-1)
    smoothed = np.where(hits == 0, 0.5**halvings, hits)
    precisions = _divide(smoothed, totals, 0.0)
    is_defined = (hits.sum(axis=-1) > 0) & (totals > 0).all(axis=-1)
    logs = np.log(np.where(precisions > 0, precisions, 1.0)).mean(axis=-1)
    brevity = np.minimum(0.0, 1.0 - _divide(reference, answer, 1.0))
    result: Array = np.where(is_defined, 100 * np.exp(logs + brevity), 0.0)
    return result


def _chrf_counts(reference: str, answer: str) -> list[int]:
    """For each order: n-grams of the answer, of the reference, and of both."""
    counts: list[int] = []
    answer, reference = "".join(answer.split()), "".join(reference.split())
    for order in range(1, CHRF_ORDER + 1):
        said, wanted = _grams(answer, order), _grams(reference, order)
        counts += (said.total() if wanted else 0, wanted.total(), (said & wanted).total())
    return counts


def _grams(text: str, order: int) -> Counter[str]:
    return Counter(text[start : start + order] for start in range(len(text) - order + 1))


def _chrf_of_sums(sums: Array) -> Array:
    """sums: [..., 18]: (answer, reference, both) for each order -> [...].

    Orders that one side is too short for are left out of both means.
    """
    said, wanted, both = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    counts = ((said > 0) & (wanted > 0)).astype(np.float64)
    num_orders = counts.sum(axis=-1)
    precision = _divide((counts * _divide(both, said, 0.0)).sum(axis=-1), num_orders, 0.0)
    recall = _divide((counts * _divide(both, wanted, 0.0)).sum(axis=-1), num_orders, 0.0)
    weight = _CHRF_BETA**2
    return 100 * _divide((1 + weight) * precision * recall, weight * precision + recall, 0.0)


def _f1(reference: str, answer: str) -> float:
    wanted, said = Counter(reference.split()), Counter(answer.split())
    both = (wanted & said).total()
    return 2 * both / (wanted.total() + said.total()) if both else 0.0
