"""Metrics of tagged words: entities counted as conlleval and seqeval count them, and words.

An entity is right when its type, its first and its last word are. Without a scheme every word is an entity of its tag,
so that micro F1, precision and recall are the accuracy. Does not reward entities found in part.

References:
    E. F. Tjong Kim Sang, F. De Meulder (2003), Introduction to the CoNLL-2003 Shared Task.
    H. Nakayama (2018), seqeval, https://github.com/chakki-works/seqeval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from tasks.row_metrics import ratio
from tasks.rules.tagging import OUTSIDE, entities_of

if TYPE_CHECKING:
    import polars as pl

    from tasks.bootstrap import Floats

RIGHT, PREDICTED, TRUE = range(3)
"""What is counted of the entities of each type."""


def numbers(predictions: pl.DataFrame, types: Sequence[str], scheme: str) -> Floats:
    """What the metrics of a row are made of.

    Args:
        predictions: Columns truth and prediction, a tag for each word; a word without a prediction counts as outside.
        types: That are measured; a model that knows others may predict them, and errs.
        scheme: See `tasks.rules.tagging.may_follow`.

    Returns:
        `[rows, 3 · types + 3]`: right, predicted and true entities of each type, predicted ones of another type, right
        words, words.
    """
    place = {name: 3 * i for i, name in enumerate(types)}
    found = np.zeros((predictions.height, 3 * len(types) + 3))
    for row, truth, prediction in zip(
        found, predictions["truth"].to_list(), predictions["prediction"].to_list(), strict=True
    ):
        true, predicted = set(entities_of(truth, scheme)), set(entities_of(prediction, scheme))
        for counted, entities in ((RIGHT, true & predicted), (PREDICTED, predicted), (TRUE, true)):
            for name, *_ in entities:
                if name in place:
                    row[place[name] + counted] += 1
                elif counted == PREDICTED:
                    row[-3] += 1
        answered = [*prediction, *[OUTSIDE] * (len(truth) - len(prediction))]
        row[-2:] = sum(map(str.__eq__, truth, answered)), len(truth)
    return found


def metrics_of(sums: Floats, types: Sequence[str]) -> Mapping[str, Floats]:
    """Name → metric; macro F1 is the mean over the types that some row has or is predicted to have.

    Args:
        sums: Of the numbers of several rows, `[..., 3 · types + 3]`.
        types: That are measured.
    """
    of_types = sums[..., :-3].reshape(*sums.shape[:-1], len(types), 3)
    right, predicted, true = (of_types[..., counted] for counted in (RIGHT, PREDICTED, TRUE))
    f1 = ratio(2 * right, predicted + true)
    by_type = {
        "f1": f1,
        "precision": ratio(right, predicted),
        "recall": ratio(right, true),
        "support": true,
    }
    every_right, every_predicted, every_true = right.sum(-1), predicted.sum(-1) + sums[..., -3], true.sum(-1)
    return {
        "f1": ratio(2 * every_right, every_predicted + every_true),
        "macro_f1": ratio(f1.sum(-1), (predicted + true > 0).sum(-1)),
        "precision": ratio(every_right, every_predicted),
        "recall": ratio(every_right, every_true),
        "accuracy": ratio(sums[..., -2], sums[..., -1]),
        **{f"{name}/{kind}": values[..., i] for i, kind in enumerate(types) for name, values in by_type.items()},
    }


def row_scores(found: Floats) -> Floats:
    """F1 of each row's entities, 1 where there are none and none is found.

    Args:
        found: See `numbers`.
    """
    of_types = found[:, :-3].reshape(len(found), -1, 3).sum(1)
    entities = of_types[:, PREDICTED] + of_types[:, TRUE] + found[:, -3]
    return np.where(entities == 0, 1.0, ratio(2 * of_types[:, RIGHT], entities))
