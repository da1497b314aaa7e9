"""Each metric by hand, and against jiwer's and sacrebleu's own scores of the whole corpus."""

from __future__ import annotations

import math
import random
import time
import warnings

import jiwer
import numpy as np
import pytest
from sacrebleu import BLEU, CHRF

from server.eval import metrics
from server.eval.bootstrap import RESAMPLES, interval, resampled_sums

WORDS = ("der", "Hund", "die", "Katze", "läuft", "schnell", "nach", "Hause,", "und", "schläft", ".", "nicht")


def sentences(count: int, seed: int, shortest: int = 0) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(shortest, 12))) for _ in range(count)]


REFERENCES = sentences(40, 1, shortest=1)
ANSWERS = [a if n % 3 else r for n, (r, a) in enumerate(zip(REFERENCES, sentences(40, 2), strict=True))]
CORPORA = {
    "mixed": (REFERENCES, ANSWERS),
    "equal": (REFERENCES, REFERENCES),
    "silent": (REFERENCES, [""] * len(REFERENCES)),
    "no match": (["a b c d e"], ["v w x y z"]),
    "no bigram": (["a b c d e"], ["e c a d b"]),
    "short answer": (["a b c d e f g h"], ["a b c d e"]),
    "under four words": (["a b c"], ["a b c"]),
    "one character": (["a"], ["abc"]),
}


@pytest.fixture(params=CORPORA.values(), ids=list(CORPORA))
def corpus(request) -> tuple[list[str], list[str]]:
    return request.param


def test_wer_and_cer_are_jiwers(corpus):
    references, answers = corpus
    assert metrics.wer(references, answers).value == pytest.approx(jiwer.wer(references, answers))
    assert metrics.cer(references, answers).value == pytest.approx(jiwer.cer(references, answers))


def test_wer_sums_edits_over_words_and_not_rates_over_rows():
    wer = metrics.wer(["a b c d", "x"], ["a B c", "x y"])
    # one substitution and one deletion, then one insertion, over five words
    assert wer.value == pytest.approx(3 / 5)
    assert wer.rows.tolist() == [[2, 4], [1, 1]]


def test_bleu_is_sacrebleus(corpus):
    references, answers = corpus
    expected = BLEU().corpus_score(answers, [references]).score
    assert metrics.bleu(references, answers, "13a").value == pytest.approx(expected)


def test_chrf_is_sacrebleus(corpus):
    references, answers = corpus
    expected = CHRF().corpus_score(answers, [references]).score
    assert metrics.chrf(references, answers).value == pytest.approx(expected)


def test_bleu_cuts_other_languages_as_told():
    chinese = ["今天 天气很好"], ["今天天气不好"]
    for tokenizer in ("13a", "zh", "char"):
        expected = BLEU(tokenize=tokenizer).corpus_score(chinese[1], [chinese[0]]).score
        assert metrics.bleu(*chinese, tokenizer).value == pytest.approx(expected)
    assert metrics.bleu(*chinese, "zh").value > metrics.bleu(*chinese, "13a").value


def test_signatures_name_what_was_computed():
    signs = metrics.signatures("13a")
    assert "tok:13a" in signs["bleu"]
    assert "smooth:exp" in signs["bleu"]
    assert "nrefs:1" in signs["bleu"]
    assert "nc:6|nw:0" in signs["chrf"]
    assert set(metrics.signatures(None)) == {"chrf"}


def test_token_f1_and_exact_match():
    references = ["the cat sat", "the cat sat", "yes"]
    answers = ["The cat, sat!", "the the dog", "no"]
    assert metrics.exact_match(references, answers).value == pytest.approx(1 / 3)
    # the second: one of three words and one of three
    assert metrics.token_f1(references, answers).value == pytest.approx((1 + 1 / 3 + 0) / 3)


def test_a_share_among_none_is_undefined():
    nothing = metrics.share("accuracy_followed", [0, 0], [0, 0])
    with warnings.catch_warnings(action="error"):
        assert math.isnan(nothing.value)
        assert interval(nothing.rows, nothing.of_sums) is None


def test_the_interval_is_that_of_the_binomial():
    hits = metrics.share("accuracy", [True] * 70 + [False] * 30)
    low, high = interval(hits.rows, hits.of_sums)
    # normal approximation: 0.7 -+ 1.96 * sqrt(0.7 * 0.3 / 100); 1000 draws leave about 0.01
    assert low == pytest.approx(0.610, abs=0.02)
    assert high == pytest.approx(0.790, abs=0.02)
    assert interval(hits.rows, hits.of_sums) == (low, high), "not repeatable"


def test_one_row_has_no_width():
    assert interval(np.array([[1.0, 4.0]]), metrics.wer(["a"], ["a"]).of_sums) == (0.25, 0.25)


def test_resampled_bleu_is_bleu_of_the_resampled_corpus():
    bleu, rows = metrics.bleu(REFERENCES, ANSWERS, "13a"), len(REFERENCES)
    draws = resampled_sums(np.eye(rows)).astype(int)  # how often each row was drawn
    assert (draws.sum(axis=1) == rows).all()
    values = bleu.of_sums(resampled_sums(bleu.rows))
    assert values.shape == (RESAMPLES,)
    for number in (0, 7, 999):
        answers = [a for a, n in zip(ANSWERS, draws[number], strict=True) for _ in range(n)]
        references = [r for r, n in zip(REFERENCES, draws[number], strict=True) for _ in range(n)]
        assert values[number] == pytest.approx(BLEU().corpus_score(answers, [references]).score)


def test_the_bootstrap_of_a_large_corpus_is_fast():
    bleu = metrics.bleu(REFERENCES, ANSWERS, "13a")
    begin = time.perf_counter()
    interval(np.tile(bleu.rows, (100, 1)), bleu.of_sums)  # 4000 rows
    assert time.perf_counter() - begin < 5
