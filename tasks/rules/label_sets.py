"""Several labels of a row, put right: one JSON list for each set of labels, sorted, each label once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl

    from tasks.rules.repair import Step


def canonical(targets: pl.Series, *, separator: str | None, usual: Sequence[Step]) -> pl.Series:
    """The labels of each row as a JSON list; what is no list of labels stays as it is.

    Args:
        targets: JSON lists, or text in which the separator stands between two labels.
        separator: None for JSON lists.
        usual: Rules for one label.
    """
    import polars as pl

    found = [parsed(text, separator) for text in targets.to_list()]
    each = pl.Series("label", [label for labels in found for label in labels or ()], dtype=pl.String)
    for _, rule in usual:
        each = rule(each)
    proper = iter(each.to_list())
    sets = [None if labels is None else {next(proper) for _ in labels} - {""} for labels in found]
    texts = [
        text if labels is None else json.dumps(sorted(labels), ensure_ascii=False)
        for text, labels in zip(targets.to_list(), sets, strict=True)
    ]
    return pl.Series(targets.name, texts, dtype=pl.String)


def parsed(text: str | None, separator: str | None) -> list[str] | None:
    """The labels that a text names; none where it is not there or no list of labels."""
    if text is None:
        return None
    if separator is not None and not text.startswith("["):
        return text.split(separator)
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if not isinstance(found, list) or not all(isinstance(label, str | int) for label in found):
        return None
    return [str(label) for label in found]


def is_list(targets: pl.Series) -> pl.Series:
    """Whether each is a JSON list of labels."""
    import polars as pl

    return pl.Series(targets.name, [parsed(text, None) is not None for text in targets.to_list()], dtype=pl.Boolean)


def lists(column: str) -> pl.Expr:
    """The labels of each row, as a list."""
    import polars as pl

    return pl.col(column).str.json_decode(pl.List(pl.String))


def names_others(targets: pl.Series, *, labels: Sequence[str]) -> pl.Series:
    """Whether a list has a label that is none of these."""
    import polars as pl

    known = set(labels)
    return pl.Series(targets.name, [not known.issuperset(parsed(text, None) or ()) for text in targets.to_list()])
