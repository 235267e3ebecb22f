"""How like the wanted text a written one is: BLEU, chrF, ROUGE-L, exact match; and how likely the wanted one was.

All follow from sums over rows, so that intervals and paired tests come from `tasks.row_metrics`. BLEU and chrF count as
sacreBLEU does, corpus-wide, on a scale of 0 to 1; ROUGE-L is the mean of its F1 over rows. Likelihood is the geometric
mean of the probabilities of the wanted tokens, each given those before it: 1 / perplexity.

References:
    M. Post (2018), A Call for Clarity in Reporting BLEU Scores.
    M. Popović (2015), chrF: character n-gram F-score for automatic MT evaluation.
    C.-Y. Lin (2004), ROUGE: A Package for Automatic Evaluation of Summaries.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks.row_metrics import ratio

if TYPE_CHECKING:
    from tasks.bootstrap import Floats

BLEU_ORDER, CHRF_ORDER, CHRF_BETA = 4, 6, 2
BLEU_NUMBERS = 2 + 2 * BLEU_ORDER
"""Lengths of what is written and wanted, matches and n-grams of each order."""
CHRF_NUMBERS = 3 * CHRF_ORDER
"""Of each order: n-grams written, wanted, in both."""
OWN_NUMBERS = 5
"""Rows, ROUGE-L, exact match, sum of negative log-likelihoods, wanted tokens."""
NUMBERS = BLEU_NUMBERS + CHRF_NUMBERS + OWN_NUMBERS
WORD = re.compile(r"\w+", re.UNICODE)


def numbers(
    written: Sequence[str], wanted: Sequence[str], losses: Sequence[float], tokens: Sequence[float], tokenize: str
) -> Floats:
    """What the metrics of each row are made of, `[rows, NUMBERS]`.

    Args:
        written: Texts of the model.
        wanted: The true ones.
        losses: Of each row, sum of the negative log-likelihoods of the wanted tokens.
        tokens: Wanted tokens of each row; 0 where nobody knows their likelihood.
        tokenize: sacreBLEU's tokenizer.
    """
    found = np.zeros((len(written), NUMBERS))
    if not len(written):
        return found
    bleu, chrf = _metrics(tokenize)
    found[:, :BLEU_NUMBERS] = bleu._extract_corpus_statistics(list(written), [list(wanted)])
    found[:, BLEU_NUMBERS : BLEU_NUMBERS + CHRF_NUMBERS] = chrf._extract_corpus_statistics(
        list(written), [list(wanted)]
    )
    pairs = list(zip(written, wanted, strict=True))
    found[:, -5] = 1
    found[:, -4] = [rouge_l(ours, true) for ours, true in pairs]
    found[:, -3] = [ours.strip() == true.strip() for ours, true in pairs]
    found[:, -2], found[:, -1] = losses, tokens
    return found


def metrics_of(sums: Floats) -> Mapping[str, Floats]:
    """Name → metric, `[…]`, of the numbers of several rows added up, `[…, NUMBERS]`; likelihoods where known."""
    sums = np.asarray(sums, np.float64)
    rows, rouge, exact, loss, tokens = np.moveaxis(sums[..., -OWN_NUMBERS:], -1, 0)
    found: dict[str, Floats] = {
        "chrf": chrf_of(sums[..., BLEU_NUMBERS : BLEU_NUMBERS + CHRF_NUMBERS]),
        "rouge_l": ratio(rouge, rows),
        "bleu": bleu_of(sums[..., :BLEU_NUMBERS]),
        "exact_match": ratio(exact, rows),
    }
    return found | likelihoods(loss, tokens) if np.all(tokens > 0) else found


def likelihoods(loss: Floats, tokens: Floats) -> dict[str, Floats]:
    """`likelihood`, `loss` and `perplexity` for each token, out of their sums."""
    mean = ratio(loss, tokens)
    return {"likelihood": np.exp(-mean), "loss": mean, "perplexity": np.exp(mean)}


def bleu_of(sums: Floats) -> Floats:
    """Corpus BLEU, 0 to 1, out of its sums `[…, BLEU_NUMBERS]`; orders without a match are smoothed as NIST does."""
    lengths, wanted = sums[..., 0], sums[..., 1]
    right, total = sums[..., 2 : 2 + BLEU_ORDER], sums[..., 2 + BLEU_ORDER :]
    missed = np.cumsum((right == 0) & (total > 0), axis=-1)
    smoothed = np.where(right > 0, right, 0.5**missed)
    logs = np.log(ratio(smoothed, total), out=np.full(total.shape, -np.inf), where=total > 0)
    penalty = np.exp(np.minimum(0.0, 1 - ratio(wanted, lengths)))
    found = penalty * np.exp(logs.mean(-1))
    return np.where(right.any(-1), found, 0.0)


def chrf_of(sums: Floats) -> Floats:
    """Corpus chrF2, 0 to 1, out of its sums `[…, CHRF_NUMBERS]`."""
    each = sums.reshape(*sums.shape[:-1], CHRF_ORDER, 3)
    written, wanted, both = np.moveaxis(each, -1, 0)
    counted = (written > 0) & (wanted > 0)
    orders = counted.sum(-1)
    precision = ratio(np.where(counted, ratio(both, written), 0).sum(-1), orders)
    recall = ratio(np.where(counted, ratio(both, wanted), 0).sum(-1), orders)
    factor = CHRF_BETA**2
    return ratio((1 + factor) * precision * recall, factor * precision + recall)


def rouge_l(written: str, wanted: str) -> float:
    """F1 of the longest common subsequence of words, in lower case; 1 where neither has a word."""
    ours, true = _words(written), _words(wanted)
    if not ours or not true:
        return float(ours == true)
    return 2 * _longest_common(ours, true) / (len(ours) + len(true))


def row_values(found: Floats) -> dict[str, Floats]:
    """`rouge_l` and `chrf` of each row, `[rows]`, out of `numbers`."""
    return {"rouge_l": found[:, -4], "chrf": chrf_of(found[:, BLEU_NUMBERS : BLEU_NUMBERS + CHRF_NUMBERS])}


def signatures(tokenize: str) -> list[str]:
    """How BLEU and chrF were counted, in sacreBLEU's words."""
    bleu, chrf = _metrics(tokenize)
    empty = [["a"]]
    for metric in (bleu, chrf):
        metric.corpus_score(["a"], empty)
    return [f"{name}|{metric.get_signature()}" for name, metric in (("BLEU", bleu), ("chrF", chrf))]


@lru_cache
def _metrics(tokenize: str) -> tuple[Any, Any]:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return BLEU(tokenize=tokenize), CHRF()


@lru_cache(maxsize=50_000)
def _words(text: str) -> tuple[str, ...]:
    return tuple(WORD.findall(text.lower()))


def _longest_common(ours: Sequence[str], true: Sequence[str]) -> int:
    """Length of the longest common subsequence, a row of the table at a time."""
    row = [0] * (len(true) + 1)
    for word in ours:
        before = 0
        for place, other in enumerate(true, 1):
            above = row[place]
            row[place] = before + 1 if word == other else max(above, row[place - 1])
            before = above
    return row[-1]
