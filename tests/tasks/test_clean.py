from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import ftfy
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.data import Clean
from schemas.errors import DataError
from tasks import clean
from tasks.families.text_classification import TextClassification, TextClassificationTask

TASK = TextClassificationTask()
LENIENT = Clean(max_quarantined=1.0)
BASE = [("one good thing", "pos"), ("one bad thing", "neg")]
"""Two rows that are always kept, so that there is something to learn."""
NO_UNREADABLE = pl.DataFrame(schema={"source": pl.String, "row": pl.UInt32, "raw": pl.String, "reason": pl.String})


def raw_frame(pairs: list[tuple[str | None, str | None]], **more: list[Any]) -> pl.DataFrame:
    columns = {
        "id": [f"r{i:03}" for i in range(len(pairs))],
        "source": ["x.csv"] * len(pairs),
        "row": list(range(1, len(pairs) + 1)),
        "text": [text for text, _ in pairs],
        "label": [label for _, label in pairs],
    }
    schema = {"row": pl.UInt32, "text": pl.String, "label": pl.String, **dict.fromkeys(more, pl.String)}
    return pl.DataFrame(columns | more, schema_overrides=schema)


def run(folder: Path, raw: pl.DataFrame, rules: Clean = LENIENT, task=TASK, unreadable: pl.DataFrame = NO_UNREADABLE):
    """Summary, kept rows and quarantine."""
    (folder / "raw").mkdir(exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    raw.write_parquet(folder / "raw" / "rows.parquet")
    unreadable.write_parquet(folder / "raw" / "quarantine.parquet")
    summary = clean.clean_rows(rules, task, folder / "raw", folder / "out")
    return (
        summary,
        pl.read_parquet(folder / "out" / "rows.parquet"),
        pl.read_parquet(folder / "out" / "quarantine.parquet"),
    )


def reasons(folder: Path, pairs: list[tuple[str | None, str | None]], rules: Clean = LENIENT, task=TASK, **more):
    """Why each of `pairs` falls out, behind the two rows that never do."""
    whole = raw_frame([*BASE, *pairs], **{name: [None, None, *values] for name, values in more.items()})
    _, _, quarantine = run(folder, whole, rules, task)
    named = dict(quarantine.select("row", "reason").iter_rows())
    return [named.get(row) for row in range(3, len(pairs) + 3)]


def repaired(text: str, rules: Clean = LENIENT) -> str:
    rows = clean.repair(rules, TextClassification(), raw_frame([(text, "x")]))
    return rows["text"][0]


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("cafÃ© noir", "café noir"),
        ("fish &amp; chips &gt; peas", "fish & chips > peas"),
        ("a\x00b\x1b[31mc", "abc"),
        ("e\u0301te\u0301", "\u00e9t\u00e9"),
        ("evil \u202etxt.exe\u202c \u2066x\u2069", "evil txt.exe x"),
        ("zero\u200bwidth\ufeff \u00adsoft", "zerowidth soft"),
        ("  two \t words\u00a0\u3000here\r\n ", "two words here"),
        ("family 👩\u200d👩\u200d👧", "family 👩\u200d👩\u200d👧"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("R&D at AT&T; ok", "R&D at AT&T; ok"),
    ],
)
def test_text_is_repaired(broken, whole):
    assert repaired(broken) == whole


def test_nothing_is_repaired_that_the_recipe_leaves_alone():
    assert repaired("  cafÃ© \u202e x ", Clean(fix_text=False, collapse_whitespace=False)) == "  cafÃ© \u202e x "
    assert repaired(" cafÃ©  x ", Clean(collapse_whitespace=False)) == " café  x "


@given(st.text(st.characters(max_codepoint=0x17F) | st.sampled_from("&;#amp<\x1b[\u2019"), max_size=40))
@settings(max_examples=300, deadline=None)
def test_text_that_ftfy_is_spared_would_not_have_changed(text):
    texts = pl.Series([text])
    if not texts.str.contains(clean.MAY_NEED_REPAIR)[0]:
        assert ftfy.fix_text(text) == text
    assert clean.fix_text(texts)[0] == clean.INVISIBLE.sub("", ftfy.fix_text(text))


def test_the_raw_rows_are_not_changed_by_the_repair(tmp_path):
    raw = raw_frame([*BASE, ("cafÃ©", "pos")])
    clean.repair(LENIENT, TextClassification(), raw)
    assert raw["text"][2] == "cafÃ©"


def test_missing_text_and_labels(tmp_path):
    pairs = [(None, "pos"), ("", "pos"), (" \u200b\u00a0", "pos"), ("fine", None), ("fine", " "), (None, None)]
    assert reasons(tmp_path, pairs) == ["missing_text"] * 3 + ["missing_label"] * 2 + ["missing_text"]


def test_white_space_alone_is_missing_text_even_when_it_is_not_collapsed(tmp_path):
    rules = Clean(max_quarantined=1, collapse_whitespace=False)
    assert reasons(tmp_path, [(" \t ", "pos")], rules) == ["missing_text"]


def test_length_bounds_count_characters_after_repair(tmp_path):
    rules = Clean(max_quarantined=1, min_chars=4, max_chars=14)
    pairs = [("abc   ", "pos"), ("abcd", "pos"), ("é" * 14, "pos"), ("é" * 15, "pos"), ("&amp;&amp;&amp;", "pos")]
    assert reasons(tmp_path, pairs, rules) == ["too_short", None, None, "too_long", "too_short"]


def test_a_label_the_recipe_does_not_know(tmp_path):
    task = TextClassificationTask(labels=("pos", "neg"))
    assert reasons(tmp_path, [("meh", "neutral"), ("good", " pos ")], task=task) == ["unknown_label", None]


def test_rows_that_contradict_each_other_all_go(tmp_path):
    pairs = [("So  so", "pos"), ("so so", "neg"), ("so SO", "pos"), ("so-so", "pos")]
    assert reasons(tmp_path, pairs) == ["contradicting_label"] * 3 + [None]


def test_a_row_that_goes_anyway_contradicts_no_other(tmp_path):
    task = TextClassificationTask(labels=("pos", "neg"))
    assert reasons(tmp_path, [("so so", "pos"), ("so so", "neutral")], task=task) == [None, "unknown_label"]


def test_contradictions_stay_when_the_recipe_says_so(tmp_path):
    rules = Clean(max_quarantined=1, drop_contradictions=False)
    assert reasons(tmp_path, [("so so", "pos"), ("so so", "neg"), ("so so", "neg")], rules) == [None, None, "duplicate"]


def test_of_duplicates_the_smallest_id_stays(tmp_path):
    pairs = [("Nice caf&eacute;", "pos"), ("nice  café", "pos"), ("NICE CAFÉ", " pos")]
    assert reasons(tmp_path, pairs) == [None, "duplicate", "duplicate"]


def test_duplicates_stay_when_the_recipe_says_so(tmp_path):
    assert reasons(tmp_path, [("nice", "pos")] * 2, Clean(max_quarantined=1, drop_duplicates=False)) == [None, None]


def test_a_training_row_never_takes_an_official_test_row_with_it(tmp_path):
    pairs = [("same", "pos"), ("same", "pos"), ("odd", "pos"), ("odd", "neg")]
    assert reasons(tmp_path, pairs, split=["train", "test", "train", "test"]) == [None] * 4


pairs_of_rows = st.lists(
    st.tuples(
        st.none() | st.sampled_from(["good", "Good ", "go od", "b\u00e9d", "be\u0301d", "bÃ©d", "", " ", "x" * 30]),
        st.sampled_from(["pos", "neg", " pos", None, "odd"]),
    ),
    max_size=14,
)


@given(pairs_of_rows, st.randoms(use_true_random=False), st.booleans(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_what_happens_to_a_row_does_not_depend_on_the_order(tmp_path_factory, pairs, rng, duplicates, contradictions):
    rules = Clean(max_quarantined=1, max_chars=20, drop_duplicates=duplicates, drop_contradictions=contradictions)
    raw = raw_frame([*BASE, *pairs])
    order = list(range(raw.height))
    rng.shuffle(order)
    outcomes = []
    for frame in (raw, raw[order]):
        _, kept, quarantine = run(tmp_path_factory.mktemp("c"), frame, rules)
        outcomes.append((set(kept.select("id", "text", "label").rows()), set(quarantine.select("id", "reason").rows())))
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0][0]) + len(outcomes[0][1]) == raw.height


def test_every_row_is_kept_or_named_with_one_reason_and_counted(tmp_path):
    unreadable = pl.DataFrame(
        {"source": ["x.csv"], "row": [7], "raw": ["a,b,c"], "reason": ["ragged_row"]},
        schema_overrides={"row": pl.UInt32},
    )
    raw = raw_frame([*BASE, ("One  good thing", "pos"), ("", "neg"), ("caf&eacute;", "neg")])
    summary, kept, quarantine = run(tmp_path, raw, unreadable=unreadable)
    assert summary == {
        "rows": 3,
        "collected": 6,
        "quarantined": {"duplicate": 1, "missing_text": 1, "ragged_row": 1},
        "quarantined_share": 0.5,
        "repaired": 2,
        "labels": {"neg": 2, "pos": 1},
    }
    assert kept.columns == ["id", "source", "row", "text", "label"]
    assert sorted(quarantine.select("row", "id", "text", "raw", "reason").rows()) == [
        (3, "r002", "One good thing", None, "duplicate"),
        (4, "r003", "", None, "missing_text"),
        (7, None, None, "a,b,c", "ragged_row"),
    ]


def test_the_meta_says_what_the_rows_teach(tmp_path):
    run(tmp_path, raw_frame(BASE))
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert meta == {"labels": ["neg", "pos"], "text_column": "text"}


def test_groups_and_sides_travel_on(tmp_path):
    _, kept, _ = run(tmp_path, raw_frame(BASE, group=["kim", None], split=["train", "test"]))
    assert kept.select("group", "split").rows() == [("kim", "train"), (None, "test")]


def test_great_loss_stops_the_run_and_says_why(tmp_path):
    raw = raw_frame(
        [*BASE, *[("good", "pos")] * 3, ("", "neg"), (None, "neg"), ("so", "pos"), ("so", "neg"), ("x", None)]
    )
    with pytest.raises(DataError) as caught:
        run(tmp_path, raw, Clean(max_quarantined=0.2))
    assert str(caught.value) == (
        "clean.max_quarantined = 0.2: 70.0% of 10 rows fell out: contradicting_label 2 (row 8 of x.csv), "
        "duplicate 2 (row 4 of x.csv), missing_text 2 (row 6 of x.csv) and 1 more; "
        "fix the rows, or the rule that took them, or raise it to 0.70"
    )
    assert list((tmp_path / "out").iterdir()) == []


def test_no_row_left_stops_the_run_whatever_the_limit(tmp_path):
    with pytest.raises(DataError, match=r"none of 2 rows is left: missing_text 2 \(row 1 of x.csv\)"):
        run(tmp_path, raw_frame([("", "pos"), (None, "neg")]))


def test_one_label_teaches_nothing(tmp_path):
    with pytest.raises(DataError, match=r"the clean rows have 1 label\(s\)"):
        run(tmp_path, raw_frame([("a", "pos"), ("b", "pos")]))


def test_the_same_rows_give_the_same_files(tmp_path):
    pairs = [(f"text {random.Random(i).random()}", "pos") for i in range(50)]
    first = run(tmp_path, raw_frame([*BASE, *pairs]))[1]
    (tmp_path / "again").mkdir()
    assert first.equals(run(tmp_path / "again", raw_frame([*BASE, *pairs]))[1])
