from __future__ import annotations

import math
import random

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from tasks import written_metrics
from tasks.written_metrics import NUMBERS, metrics_of, numbers, rouge_l

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dogs", "ran", "far", ",", "away", "!", "Über", "straße"]


def texts(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(0, 12))) for _ in range(count)]


def edited(true: list[str], seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(word for word in text.split() if draw.random() > 0.2) for text in true]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("write", [edited, lambda true, seed: texts(len(true), seed + 100)])
def test_bleu_and_chrf_are_sacrebleu_s(write, count, seed):
    true = [text or "word" for text in texts(count, seed)]
    written = write(true, seed)
    found = metrics_of(numbers(written, true, [1.0] * count, [1] * count, "13a").sum(0))
    assert found["bleu"] == pytest.approx(BLEU().corpus_score(written, [true]).score / 100, abs=1e-9)
    assert found["chrf"] == pytest.approx(CHRF().corpus_score(written, [true]).score / 100, abs=1e-9)


def test_many_sums_are_measured_at_once():
    true = texts(30, 1)
    each = numbers(edited(true, 2), true, [2.0] * 30, [4] * 30, "13a")
    stacked = np.stack([each[:10].sum(0), each[10:].sum(0), np.zeros(NUMBERS)])
    together = metrics_of(stacked[:2])
    for place in range(2):
        alone = metrics_of(stacked[place])
        assert {name: value[place] for name, value in together.items()} == pytest.approx(
            {name: float(value) for name, value in alone.items()}
        )
    assert metrics_of(stacked[2])["bleu"] == 0


@pytest.mark.parametrize(
    ("written", "wanted", "score"),
    [
        ("police killed the gunman", "police kill the gunman", 3 / 4),  # both of Lin (2004), section 3.1
        ("the gunman kill police", "police kill the gunman", 2 / 4),
        ("The cat.", "the  CAT", 1.0),
        ("", "", 1.0),
        ("", "a", 0.0),
        ("a b c d", "a c", 2 * 2 / 6),
    ],
)
def test_rouge_l_of_hand_worked_cases(written, wanted, score):
    assert rouge_l(written, wanted) == pytest.approx(score)


def test_likelihood_is_the_geometric_mean_over_tokens():
    losses = [-math.log(0.5), -math.log(0.5) - math.log(0.125)]
    found = metrics_of(numbers(["a", "b"], ["a", "c"], losses, [1, 2], "13a").sum(0))
    assert found["likelihood"] == pytest.approx((0.5 * 0.5 * 0.125) ** (1 / 3))
    assert found["perplexity"] == pytest.approx(1 / found["likelihood"])
    assert found["exact_match"] == 0.5


def test_without_likelihoods_there_are_none():
    found = metrics_of(numbers(["a"], ["a"], [0.0], [0], "13a").sum(0))
    assert set(found) == {"chrf", "rouge_l", "bleu", "exact_match"}


def test_how_it_is_counted_is_told():
    bleu, chrf = written_metrics.signatures("char")
    assert bleu.startswith("BLEU|nrefs:1|case:mixed|eff:no|tok:char|smooth:exp|version:")
    assert chrf.startswith("chrF|nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:")
