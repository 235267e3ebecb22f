from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from tasks.sources import Batch
from tasks.sources.word_lists import joined


def joined_rows(rows, columns=("text", "tags")):
    values = pl.DataFrame(rows, schema=dict.fromkeys(("text", "tags"), pl.String), orient="row")
    batch = joined(Batch(("text", "tags"), np.arange(1, len(rows) + 1, dtype=np.uint32), values), columns)
    numbered = [(int(number), *row) for number, row in zip(batch.numbers, batch.values.rows(), strict=True)]
    return numbered, [(number, reason) for number, _, reason in batch.unreadable]


def as_json(*lists):
    return tuple(json.dumps(each) for each in lists)


def test_lists_become_texts_and_texts_stay():
    rows = [
        as_json(["EU", "rejects"], ["B-ORG", "O"]),
        as_json(["EU", "rejects"], [3, 0]),
        ("EU rejects", "B-ORG O"),
        ("EU  rejects", json.dumps(["B-ORG", "O"])),
        as_json([7, "é"], ["O", "O"]),
        (None, None),
    ]
    assert joined_rows(rows) == (
        [
            (1, "EU rejects", "B-ORG O"),
            (2, "EU rejects", "3 0"),
            (3, "EU rejects", "B-ORG O"),
            (4, "EU  rejects", "B-ORG O"),
            (5, "7 é", "O O"),
            (6, None, None),
        ],
        [],
    )


@pytest.mark.parametrize("text", ["[1]", "[ 1 ] as before", '["', "[1, 2]"])
def test_a_text_that_looks_like_a_list_of_numbers_stays_one(text):
    assert joined_rows([(text, "O")]) == ([(1, text, "O")], [])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (as_json(["New York", "is"], ["B", "O"]), "space_in_word"),
        (as_json(["a", ""], ["B", "O"]), "empty_word"),
        (as_json(["a", None], ["B", "O"]), "empty_word"),
        (as_json(["a\u00a0b"], ["B"]), "space_in_word"),
        (as_json(["a"], ["B O"]), "space_in_word"),
        (as_json([["a"]], ["B"]), "not_words"),
        (as_json(["a"], [1.5]), "not_words"),
        (as_json(["a"], [True]), "not_words"),
    ],
)
def test_what_is_no_list_of_words_is_set_aside(row, reason):
    fine = as_json(["a"], ["O"])
    assert joined_rows([fine, row, fine]) == ([(1, "a", "O"), (3, "a", "O")], [(2, reason)])


def test_without_columns_that_may_be_lists_nothing_changes():
    row = as_json(["a"], ["O"])
    assert joined_rows([row], ()) == ([(1, *row)], [])
