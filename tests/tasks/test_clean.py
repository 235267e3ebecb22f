from __future__ import annotations

import hashlib
import json
import random
import resource
import time
from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import frames
from schemas.data import Clean, Expectations
from schemas.errors import DataError, RecipeError
from schemas.loading import validate_recipe
from schemas.records import Artifact
from tasks import clean
from tasks.collect import collect
from tasks.context import Context
from tasks.families.text_classification import TextClassificationTask
from tasks.home import Home
from tasks.rows import files
from tasks.rules import part, several

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


def run(
    folder: Path,
    raw: pl.DataFrame,
    rules: Clean = LENIENT,
    task=TASK,
    unreadable: pl.DataFrame = NO_UNREADABLE,
    *,
    own_ids: bool = False,
    cuts: tuple[int, ...] = (),
):
    """Summary, kept rows and quarantine; the rows come in several files when they are cut."""
    bounds = [0, *sorted(cuts), raw.height]
    parts = []
    for place, (start, end) in enumerate(pairwise(bounds)):
        parts.append(folder / f"part{place}")
        parts[-1].mkdir(exist_ok=True)
        raw[start:end].write_parquet(folder / f"{place}.parquet")
        clean.clean_part(rules, task, folder / f"{place}.parquet", parts[-1])
    unreadable.write_parquet(folder / "quarantine.parquet")
    out = folder / "out"
    out.mkdir()
    summary = clean.clean_rows(rules, task, own_ids=own_ids, parts=parts, raw=folder, out=out)
    kept = pl.concat(pl.read_parquet(path) for path in files(out / "rows"))
    return summary, kept, pl.read_parquet(out / "quarantine.parquet")


def reasons(folder: Path, pairs: list[tuple[str | None, str | None]], rules: Clean = LENIENT, task=TASK, **more):
    """Why each of `pairs` falls out, behind the two rows that never do."""
    whole = raw_frame([*BASE, *pairs], **{name: [None, None, *values] for name, values in more.items()})
    _, _, quarantine = run(folder, whole, rules, task)
    named = dict(quarantine.select("row", "reason").iter_rows())
    return [named.get(row) for row in range(3, len(pairs) + 3)]


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
    first, *others = reasons(tmp_path, [("so so", "pos"), ("so so", "neg"), ("so so", "neg")], rules)
    assert (first, sorted(others, key=str)) == (None, [None, "duplicate"])


def test_of_duplicates_one_stays(tmp_path):
    pairs = [("Nice caf&eacute;", "pos"), ("nice  café", "pos"), ("NICE CAFÉ", " pos")]
    assert sorted(reasons(tmp_path, pairs), key=str) == [None, "duplicate", "duplicate"]


def test_rows_of_one_digest_id_are_numbered_where_they_all_stay(tmp_path):
    raw = raw_frame([*BASE, ("same", "pos"), ("same", "neg"), ("same", "neg")]).with_columns(
        id=pl.Series(["a", "b", "c", "c", "c"])
    )
    rules = Clean(max_quarantined=1, drop_duplicates=False, drop_contradictions=False)
    kept = run(tmp_path, raw, rules, cuts=(3,))[1]
    assert sorted(kept["id"]) == ["a", "b", "c", "c-1", "c-2"]
    assert kept["id"].is_unique().all()


def test_of_rows_with_one_id_of_their_own_the_first_stays(tmp_path):
    raw = raw_frame([*BASE, ("third", "pos"), ("", "pos"), ("fifth", "pos")]).with_columns(
        id=pl.Series(["a", "b", "a", "c", "c"])
    )
    _, kept, quarantine = run(tmp_path, raw, own_ids=True, cuts=(2,))
    assert kept.select("id", "row").rows() == [("a", 1), ("b", 2), ("c", 5)]
    assert quarantine.select("row", "reason").rows() == [(3, "duplicate_id"), (4, "missing_text")]


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


@given(pairs_of_rows, st.randoms(use_true_random=False), st.lists(st.integers(0, 16), max_size=4), st.booleans())
@settings(max_examples=40, deadline=None)
def test_neither_order_nor_files_decide_what_is_kept(tmp_path_factory, pairs, rng, cuts, duplicates):
    rules = Clean(max_quarantined=1, max_chars=20, drop_duplicates=duplicates)
    whole = raw_frame([*BASE, *pairs])
    raw = whole.with_columns(id=whole["text"].fill_null(""))  # as collect does: rows of one raw text share an id
    raw = raw.with_columns(id=pl.when(pl.col("id") == "").then(pl.lit("-")).otherwise("id"))
    order = list(range(raw.height))
    rng.shuffle(order)
    cuts = tuple(min(cut, raw.height) for cut in cuts)
    one = run(tmp_path_factory.mktemp("c"), raw, rules)
    other = run(tmp_path_factory.mktemp("c"), raw[order], rules, cuts=cuts)
    assert one[0] == other[0]
    content = ["id", "text", "label"]
    assert Counter(one[1].select(content).rows()) == Counter(other[1].select(content).rows())
    assert one[1]["id"].is_unique().all()


@given(pairs_of_rows)
@settings(max_examples=40, deadline=None)
def test_what_is_kept_is_what_a_plain_count_says(tmp_path_factory, pairs):
    """An independent implementation: dictionaries over the repaired rows."""
    _, kept, quarantine = run(tmp_path_factory.mktemp("c"), raw_frame([*BASE, *pairs]), Clean(max_quarantined=1))
    repairs = {"Good ": "Good", "bÃ©d": "b\u00e9d", "be\u0301d": "b\u00e9d"}
    fit = [
        (repairs.get(text, text), label.strip()) for text, label in [*BASE, *pairs] if (text or "").strip() and label
    ]
    labels: dict[str, set[str]] = {}
    for text, label in fit:
        labels.setdefault(text.casefold(), set()).add(label)
    agreed = {(text, *found) for text, found in labels.items() if len(found) == 1}
    assert {(text.casefold(), label) for text, label in kept.select("text", "label").rows()} == agreed
    assert kept.height == len(agreed)
    expected = Counter("contradicting_label" for text, _ in fit if len(labels[text.casefold()]) > 1)
    found = Counter(quarantine["reason"])
    assert found["contradicting_label"] == expected["contradicting_label"]
    assert found["duplicate"] == len(fit) - expected["contradicting_label"] - len(agreed)


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
        "changed": {"collapse_whitespace": 1, "fix_text": 1, "strip_targets": 0},
        "lengths": {"p5": 4, "p50": 13, "p95": 14, "max": 14},
        "labels": {"neg": 2, "pos": 1},
    }
    assert kept.columns == ["id", "source", "row", "text", "label"]
    [duplicate] = quarantine.filter(reason="duplicate").select("row", "id", "text").rows()
    assert duplicate in {(1, "r000", "one good thing"), (3, "r002", "One good thing")}
    assert sorted(
        quarantine.filter(pl.col("reason") != "duplicate").select("row", "id", "text", "raw", "reason").rows()
    ) == [
        (4, "r003", "", None, "missing_text"),
        (7, None, None, "a,b,c", "ragged_row"),
    ]


def test_the_meta_says_what_the_rows_teach(tmp_path):
    run(tmp_path, raw_frame(BASE))
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    rules = {"steps": [{"rule": "fix_text", "form": "NFC"}, {"rule": "collapse_whitespace"}]}
    assert meta == {
        "labels": ["neg", "pos"], "text_column": "text", "target_columns": ["label"], "label_column": "label",
        "several_labels": False, "text_rules": rules
    }  # fmt: skip


def test_groups_sides_times_and_kept_columns_travel_on(tmp_path):
    raw = raw_frame(BASE, group=["kim", None], split=["train", "test"], time=["0", "2024-05-01T14:00:00+02:00"])
    _, kept, _ = run(tmp_path, raw.with_columns(pl.Series("meta.page", [None, "7"])))
    assert kept.schema["time"] == pl.Datetime("us", "UTC")
    assert kept.select("group", "split", "time", "meta.page").rows() == [
        ("kim", "train", datetime(1970, 1, 1, tzinfo=UTC), None),
        (None, "test", datetime(2024, 5, 1, 12, tzinfo=UTC), "7"),
    ]
    assert frames.clean_rows(["text", "label"]).validate(kept, lazy=True).height == 2


def test_files_with_and_without_sides_stand_next_to_each_other(tmp_path):
    parts = []
    for name, raw in {"a": raw_frame(BASE), "b": raw_frame(BASE, split=["test", None])}.items():
        raw.write_parquet(tmp_path / f"{name}.parquet")
        parts.append(tmp_path / name)
        parts[-1].mkdir()
        clean.clean_part(LENIENT, TASK, tmp_path / f"{name}.parquet", parts[-1])
    NO_UNREADABLE.write_parquet(tmp_path / "quarantine.parquet")
    (tmp_path / "out").mkdir()
    clean.clean_rows(LENIENT, TASK, own_ids=False, parts=parts, raw=tmp_path, out=tmp_path / "out")
    kept = pl.concat(pl.read_parquet(path) for path in files(tmp_path / "out" / "rows"))
    assert sorted(kept.select("text", "split").rows(), key=str) == [
        ("one bad thing", None), ("one good thing", "test"), ("one good thing", None)
    ]  # fmt: skip


def test_a_time_that_cannot_be_read_goes_and_is_shown_a_missing_one_stays(tmp_path):
    raw = raw_frame([*BASE, ("x", "pos"), ("y", "pos")], time=["12.5", "", "yesterday", None])
    _, kept, quarantine = run(tmp_path, raw)
    assert kept["row"].to_list() == [1, 2, 4]
    assert quarantine.select("row", "raw", "reason").rows() == [(3, "yesterday", "bad_time")]


def test_rules_are_off_or_on_by_the_recipe_and_count_the_rows_they_change(tmp_path):
    raw = raw_frame([*BASE, ("<b>mail</b> kim@example.com", "POSITIVE "), ("caf\u00c3\u00a9  noir", "Neg")])
    rules = Clean(
        max_quarantined=1, strip_markup=True, redact=("email",), label_aliases={"positive": "pos", "NEG": "neg"}
    )
    summary, kept, _ = run(tmp_path, raw, rules)
    assert kept.select("text", "label").rows()[2:] == [("mail <EMAIL>", "pos"), ("caf\u00e9 noir", "neg")]
    assert summary["changed"] == {
        "strip_markup": 1, "fix_text": 1, "redact:email": 1, "collapse_whitespace": 1, "strip_targets": 1,
        "label_aliases": 2,
    }  # fmt: skip
    (tmp_path / "plain").mkdir()
    summary, kept, _ = run(tmp_path / "plain", raw, Clean(max_quarantined=1, fix_text=False, collapse_whitespace=False))
    assert kept["text"].to_list() == raw["text"].to_list()
    assert summary["changed"] == {"strip_targets": 1}
    assert summary["repaired"] == 0


def test_an_alias_makes_a_label_known(tmp_path):
    task = TextClassificationTask(labels=("pos", "neg"))
    rules = Clean(max_quarantined=1, label_aliases={"+": "pos"})
    assert reasons(tmp_path, [("good", " + "), ("fine", "++")], rules, task) == [None, "unknown_label"]


def test_lines_that_are_no_rows_are_redacted_too(tmp_path):
    unreadable = pl.DataFrame(
        {"source": ["x.csv"], "row": [7], "raw": ["a,kim@example.com"], "reason": ["ragged_row"]},
        schema_overrides={"row": pl.UInt32},
    )
    rules = Clean(max_quarantined=1, redact=("email",))
    assert run(tmp_path, raw_frame(BASE), rules, unreadable=unreadable)[2]["raw"].to_list() == ["a,<EMAIL>"]


def test_kept_columns_are_redacted_and_nothing_else_is_done_to_them(tmp_path):
    raw = raw_frame(BASE, group=["kim@example.com", None]).with_columns(
        pl.Series("meta.author", [" Kim <kim@example.com>", None]), pl.Series("meta.page", ["<b>7</b>", "8"])
    )
    rules = Clean(max_quarantined=1, strip_markup=True, redact=("email",))
    summary, kept, _ = run(tmp_path, raw, rules)
    assert kept.select("group", "meta.author", "meta.page").rows() == [
        ("kim@example.com", " Kim <<EMAIL>>", "<b>7</b>"), (None, None, "8")
    ]  # fmt: skip
    assert (summary["changed"]["redact:email"], summary["changed"]["strip_markup"]) == (1, 0)
    assert summary["repaired"] == 0
    (tmp_path / "plain").mkdir()
    assert run(tmp_path / "plain", raw)[1]["meta.author"][0] == " Kim <kim@example.com>"


def test_a_row_that_a_faulty_rule_lets_through_is_quarantined_not_a_crash(tmp_path, monkeypatch):
    monkeypatch.setattr(part, "missing_text", lambda family: [])
    monkeypatch.setattr(part, "length_bounds", lambda rules, family: [])
    assert reasons(tmp_path, [("", "pos"), (None, "neg"), ("fine", "pos")]) == [
        "schema:text:str_length", "schema:text:not_nullable", None
    ]  # fmt: skip


def test_a_collected_row_that_is_none_is_quarantined_not_a_crash(tmp_path):
    raw = raw_frame([*BASE, ("fine", "pos")]).with_columns(source=pl.Series(["x.csv", "x.csv", ""]))
    assert run(tmp_path, raw)[2]["reason"].to_list() == ["schema:source:str_length"]


def test_every_expectation_that_is_not_met_is_named(tmp_path):
    raw = raw_frame([*BASE, ("a third", "pos"), ("a fourth", "pos")], group=["g", None, " ", "g"])
    raw = raw.with_columns(pl.Series("meta.page", ["1", None, None, None]))
    expect = Expectations(
        min_rows=5,
        min_rows_per_label=2,
        max_label_share=0.7,
        max_missing={"group": 0.4, "page": 0.75, "meta.page": 0.5, "text": 0, "pages": 0.1},
    )
    task = TextClassificationTask(labels=("pos", "neg", "odd"))
    with pytest.raises(DataError) as caught:
        run(tmp_path, raw, Clean(expect=expect), task)
    assert str(caught.value).splitlines() == [
        "clean.expect.min_rows = 5: 4 rows are left; collect more, or lower it",
        "clean.expect.min_rows_per_label = 2: too few rows of neg 1, odd 0; collect more of them, or lower it",
        "clean.expect.max_label_share = 0.7: 75.0% of 4 rows are pos; collect more of the others, or raise it",
        "clean.expect.max_missing.group = 0.4: 50.0% of 4 rows lack a value; fill them in at the source, or raise it",
        "clean.expect.max_missing.meta.page = 0.5: 75.0% of 4 rows lack a value; fill them in at the source, "
        "or raise it",
        "clean.expect.max_missing.pages = 0.1: the rows have no such column; name one of group, label, page, text",
    ]
    assert list((tmp_path / "out").iterdir()) == []


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
    run(tmp_path, raw_frame([*BASE, *pairs]))
    (tmp_path / "again").mkdir()
    run(tmp_path / "again", raw_frame([*BASE, *pairs]))
    for name in ("rows/00000.parquet", "quarantine.parquet", "meta.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / "out" / name).read_bytes()


def test_ranks_never_change():
    """They decide which of equal rows stays: another digest would keep other rows."""
    frame = raw_frame([("One  good thing", "pos")], split=["train"])
    rank = next(series for series in part.keys(part.family_of(TASK), frame) if series.name == "rank")
    digest = hashlib.blake2b(b"id=4:r000label=3:possplit=5:traintext=15:One  good thing", digest_size=8).digest()
    assert rank[0] == int.from_bytes(digest, "little")


@given(st.lists(st.tuples(*[st.integers(0, 3)] * 3), min_size=1, max_size=40), st.integers(0, 2**32), st.booleans())
def test_of_the_other_keys_only_what_is_equal_decides(rows, seed, own_ids):
    """They are a hash of Polars', which another version may change."""
    rng = np.random.default_rng(seed)
    ranks = rng.permutation(len(rows)).astype(np.uint64)

    def judged(names: np.ndarray) -> tuple[list[int], list[int]]:
        ids, texts, targets = (names[list(column)] for column in zip(*rows, strict=True))
        keys = several.Keys(ids, texts, targets, ranks)
        reason = several.judge(keys, own_ids=own_ids, contradictions=True, duplicates=True)
        return reason.tolist(), several.numbers(keys, reason).tolist()

    others = rng.integers(2**63, size=4, dtype=np.uint64)
    assert judged(others) == judged(np.arange(4, dtype=np.uint64))


def test_texts_are_the_same_in_any_case_and_white_space_and_apart_by_side_and_target():
    texts = ["One  good\tthing", " one GOOD thing", "one good thing", "Straße", "STRASSE", "one good thin g"]
    frame = raw_frame([(text, "pos") for text in texts])
    found = {series.name: series.to_list() for series in part.keys(part.family_of(TASK), frame)}
    one, same, plain, street, capitals, other = found["text_key"]
    assert one == same == plain != other
    assert street == capitals != one
    assert len(set(found["target_key"])) == 1
    assert len(set(found["id_key"])) == len(texts)
    apart = raw_frame([("one good thing", "pos"), ("one good thing", "neg")], split=["train", "test"])
    found = {series.name: series.to_list() for series in part.keys(part.family_of(TASK), apart)}
    assert all(len(set(found[name])) == 2 for name in ("text_key", "target_key"))


@pytest.fixture
def cleaned(tmp_path, monkeypatch):
    """Cleans `data/*.csv` as the recipe's changes say: the artifact, and how many files were cleaned for it."""
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("text,label\none good thing,pos\n<b>same</b>,neg\n")
    (tmp_path / "data" / "b.csv").write_text("text,label\nSame,neg\nbad at kim@example.com,neg\n")

    def run_stage(collect_: dict[str, Any] | None = None, **rules: Any) -> tuple[Artifact, int]:
        source = {"kind": "csv", "path": str(tmp_path / "data")}
        recipe = validate_recipe(
            {"name": "r", "task": {"family": "text-classification"}, "model": {"base": "b"},
             "collect": {"source": source, **(collect_ or {})}, "clean": {"max_quarantined": 1.0, **rules}}
        )  # fmt: skip
        context = Context(recipe, Home.open(tmp_path), "run")
        found = clean.clean(context, collect(context))
        made = len(list((tmp_path / "home" / "store" / "clean-part").iterdir())) - run_stage.before
        run_stage.before += made
        return found, made

    run_stage.before = 0
    return run_stage


def test_a_new_file_is_the_only_one_that_is_cleaned(cleaned, tmp_path):
    first, made = cleaned()
    assert (first.summary["rows"], made, first.cached) == (4, 2, False)
    assert (cleaned()[0].cached, cleaned()[1]) == (True, 0)
    (tmp_path / "data" / "c.csv").write_text("text,label\nanother one,pos\n")
    more, made = cleaned()
    assert (more.summary["rows"], made) == (5, 1)


def test_rules_about_all_rows_clean_no_file_again(cleaned):
    cleaned(strip_markup=True)
    assert cleaned(strip_markup=True, max_quarantined=0.9, expect={"min_rows": 2})[1] == 0
    artifact, made = cleaned(strip_markup=True, drop_duplicates=False)
    assert (artifact.summary["rows"], made) == (4, 0)
    assert cleaned(strip_markup=True, redact=["email"])[1] == 2


def test_an_id_column_makes_a_second_row_of_one_id_fall_out(cleaned, tmp_path):
    (tmp_path / "data" / "a.csv").write_text("key,text,label\n1,one good thing,pos\n2,another,neg\n")
    (tmp_path / "data" / "b.csv").write_text("key,text,label\n2,a third,neg\n")
    artifact, _ = cleaned(collect_={"id_column": "key"})
    assert artifact.summary["quarantined"] == {"duplicate_id": 1}


def test_a_wrong_name_in_the_recipe_is_one_line(cleaned):
    with pytest.raises(RecipeError, match=r"^clean\.redact = 'passport': no redactor of this name; .*$"):
        cleaned(redact=["passport"])
    with pytest.raises(DataError, match=r"^clean\.expect\.min_rows = 100: 4 rows are left"):
        cleaned(expect={"min_rows": 100})


@pytest.mark.timed
def test_two_hundred_thousand_rows_pass_in_seconds(tmp_path):
    rng = random.Random(7)
    words = [f"word{i}" for i in range(5000)]
    texts = [" ".join(rng.choices(words, k=15)) for _ in range(200_000)]
    raw = raw_frame([(text, ("pos", "neg")[place % 2]) for place, text in enumerate(texts)])
    raw = raw.with_columns(id=pl.int_range(raw.height).cast(pl.String))
    began = time.perf_counter()
    summary, _, _ = run(tmp_path, raw, cuts=(100_000,))
    speed = raw.height / (time.perf_counter() - began)
    print(f"{speed:,.0f} rows/s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MiB")
    assert summary["rows"] == len(set(texts))
    assert speed > 20_000
