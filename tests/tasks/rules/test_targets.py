from __future__ import annotations

import polars as pl
import pytest

from schemas.errors import RecipeError
from tasks.rules import targets


def test_aliases_are_compared_without_case_and_outer_white_space():
    aliases = targets.folded({" Positive": "pos", "STRASSE": "street"})
    found = targets.replace_aliases(pl.Series(["positive ", "POSITIVE", "straße", "neg", None]), aliases)
    assert found.to_list() == ["pos", "pos", "street", "neg", None]


def test_labels_of_nulls_alone_stay_nulls():
    assert targets.replace_aliases(pl.Series([None], dtype=pl.String), {"a": "b"}).to_list() == [None]


def test_aliases_may_swap_two_labels():
    swapped = targets.replace_aliases(pl.Series(["a", "b"]), targets.folded({"a": "b", "b": "a"}))
    assert swapped.to_list() == ["b", "a"]


def test_one_spelling_cannot_mean_two_labels():
    with pytest.raises(RecipeError, match=r"clean\.label_aliases = 'POS': means 'a' too: case"):
        targets.folded({"pos": "a", "POS": "b"})
    assert targets.folded({"pos": "a", "POS": "a"}) == {"pos": "a"}


def test_white_space_around_targets_goes():
    assert targets.strip(pl.Series([" pos\t", None])).to_list() == ["pos", None]
