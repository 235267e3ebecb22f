from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from schemas.data import HashSplit, OfficialSplit
from schemas.errors import DataError
from tasks import split

HASH = HashSplit(validation=0.2, test=0.2)
OFFICIAL = OfficialSplit(validation=0.25)


def clean_frame(texts: list[str], **more: list[Any]) -> pl.DataFrame:
    columns = {
        "id": [hashlib.md5(f"{i}{t}".encode()).hexdigest() for i, t in enumerate(texts)],
        "source": ["x.csv"] * len(texts),
        "row": list(range(1, len(texts) + 1)),
        "text": texts,
        "label": [("pos", "neg")[i % 2] for i in range(len(texts))],
    }
    overrides = {"row": pl.UInt32, **dict.fromkeys(more, pl.String)}
    return pl.DataFrame(columns | more, schema_overrides=overrides)


def run(folder: Path, rows: pl.DataFrame, how: HashSplit | OfficialSplit = HASH):
    """Summary, and the rows of each side."""
    (folder / "clean").mkdir(parents=True, exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    rows.write_parquet(folder / "clean" / "rows.parquet")
    meta = {"labels": sorted(set(rows["label"])), "text_column": "text"}
    (folder / "clean" / "meta.json").write_text(json.dumps(meta))
    summary = split.split_rows(how, folder / "clean", folder / "out")
    names = ("train", "validation", "test", "leaked")
    return summary, {name: pl.read_parquet(folder / "out" / f"{name}.parquet") for name in names}


def side_of(sides: dict[str, pl.DataFrame]) -> dict[str, str]:
    return {text: name for name, rows in sides.items() for text in rows["text"]}


TEXTS = [f"text number {i}" for i in range(2_000)]


def test_shares_are_those_of_the_recipe(tmp_path):
    summary, sides = run(tmp_path, clean_frame(TEXTS))
    assert sum(summary[side] for side in ("train", "validation", "test")) == 2_000
    assert summary["validation"] == pytest.approx(400, abs=60)  # three standard deviations are 54
    assert summary["test"] == pytest.approx(400, abs=60)
    assert summary["labels"]["test"] == dict(sorted(sides["test"]["label"].value_counts().iter_rows()))
    assert (tmp_path / "out" / "meta.json").read_bytes() == (tmp_path / "clean" / "meta.json").read_bytes()


def test_a_row_never_changes_sides_as_the_data_grows(tmp_path):
    _, few = run(tmp_path / "few", clean_frame(TEXTS[:500]))
    _, many = run(tmp_path / "many", clean_frame(TEXTS[::-1]))
    after = side_of(many)
    assert all(after[text] == side for text, side in side_of(few).items())


def test_a_smaller_test_share_only_takes_rows_from_the_test_side(tmp_path):
    _, wide = run(tmp_path / "wide", clean_frame(TEXTS), HashSplit(test=0.3, validation=0.1))
    _, narrow = run(tmp_path / "narrow", clean_frame(TEXTS), HashSplit(test=0.1, validation=0.1))
    assert set(narrow["test"]["text"]) < set(wide["test"]["text"])


def test_another_version_deals_anew(tmp_path):
    _, first = run(tmp_path / "1", clean_frame(TEXTS))
    _, second = run(tmp_path / "2", clean_frame(TEXTS), HashSplit(validation=0.2, test=0.2, version=2))
    both = len(set(first["test"]["text"]) & set(second["test"]["text"]))
    assert both == pytest.approx(80, abs=30)  # a fifth of a fifth


def test_the_sides_are_frozen(tmp_path):
    """Sides are part of what users compare over years: these were computed once and must never change."""
    rows = pl.DataFrame({"__likeness": ["good morning", "bad day", "so so", "never again", "what now", "why not"]})
    bounds = {"test": 0.3, "validation": 0.6}
    numbers = [
        int.from_bytes(hashlib.blake2b(f"1:{key}".encode(), digest_size=8).digest(), "big") / 2**64
        for key in rows["__likeness"]
    ]
    expected = ["test" if u < 0.3 else "validation" if u < 0.6 else "train" for u in numbers]
    assert split.hash_sides(rows, 1, bounds).to_list() == expected
    assert len(set(expected)) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("RT @kim: Great day!! https://t.co/abc #sun", "great day sun"),
        ("great   DAY, www.example.org/x sun…", "great day sun"),
        ("Größe: 7", "größe 7"),
        ("हिन्दी में!", "हिन्दी में"),
        ("nice ❤\ufe0f", "nice"),
        ("@kim https://t.co/abc", "@kim https://t.co/abc"),
        ("😀😀", "😀😀"),
        ("start @ noon", "start noon"),
    ],
)
def test_near_identical_texts_are_the_same_when_normalised(text, expected):
    assert pl.select(split.normalised(pl.lit(text))).item() == expected


def test_near_identical_texts_share_a_side(tmp_path):
    variants = ["{}", "RT @someone: {}", "{} http://t.co/{}", "@me {}!!"]
    rows = clean_frame([variant.format(text, i) for i, text in enumerate(TEXTS[:300]) for variant in variants])
    _, sides = run(tmp_path, rows)
    alike = [side_of(sides)[text] for text in rows["text"]]
    assert all(len(set(alike[i : i + 4])) == 1 for i in range(0, len(alike), 4))
    assert len(set(alike)) == 3


def test_rows_of_one_group_share_a_side(tmp_path):
    groups = [f"author {i % 40}" for i in range(400)]
    _, sides = run(tmp_path, clean_frame(TEXTS[:400], group=groups))
    held = [set(sides[side]["group"]) for side in ("train", "validation", "test")]
    assert sum(len(group) for group in held) == len(set.union(*held)) == 40


def test_a_row_without_a_group_goes_by_its_text(tmp_path):
    _, grouped = run(tmp_path / "grouped", clean_frame(TEXTS[:200], group=[None] * 200))
    _, alone = run(tmp_path / "alone", clean_frame(TEXTS[:200]))
    assert side_of(grouped) == side_of(alone)


def test_a_text_of_two_groups_is_not_learnt_where_it_is_tested(tmp_path):
    groups = [f"author {i % 40}" for i in range(400)]
    texts = ["said by many" if i < 40 else text for i, text in enumerate(TEXTS[:400])]
    summary, sides = run(tmp_path, clean_frame(texts, group=groups))
    assert "said by many" in sides["test"]["text"]
    assert "said by many" not in [*sides["train"]["text"], *sides["validation"]["text"]]
    assert summary["leaked"] == sides["leaked"].height > 0


def official(train: list[str], validation: list[str], test: list[str], names=("train", "validation", "test")):
    sides = [name for name, texts in zip(names, (train, validation, test), strict=True) for _ in texts]
    return clean_frame([*train, *validation, *test], split=sides)


def test_official_sides_in_other_spellings(tmp_path):
    rows = official(TEXTS[:10], TEXTS[10:14], TEXTS[14:20], names=("Training ", "dev", "TEST"))
    summary, _ = run(tmp_path, rows, OFFICIAL)
    assert [summary[side] for side in ("train", "validation", "test", "leaked")] == [10, 4, 6, 0]


def test_a_side_that_is_none_is_named(tmp_path):
    rows = official(TEXTS[:10], TEXTS[10:14], TEXTS[14:20], names=("train", "tune", "test")).with_columns(
        split=pl.when(pl.col("row") == 1).then(None).otherwise("split")
    )
    with pytest.raises(DataError) as caught:
        run(tmp_path, rows, OFFICIAL)
    assert str(caught.value).startswith(
        "collect.split_column = [None, 'tune']: names no side of a split; write one of train"
    )


def test_official_training_rows_that_are_held_out_elsewhere_are_removed_and_counted(tmp_path):
    train = [*TEXTS[:10], "RT @a: held out!", "chosen by https://t.co/x"]
    rows = official(train, [*TEXTS[10:14], "chosen by", "Held out"], [*TEXTS[14:20], "held out"])
    summary, sides = run(tmp_path, rows, OFFICIAL)
    assert sorted(sides["leaked"]["text"]) == ["Held out", "RT @a: held out!", "chosen by https://t.co/x"]
    assert [summary[side] for side in ("train", "validation", "test", "leaked")] == [10, 5, 7, 3]


def test_validation_is_dealt_from_train_where_the_source_has_none(tmp_path):
    summary, sides = run(tmp_path, official(TEXTS[:1_000], [], TEXTS[1_000:1_100]), OFFICIAL)
    assert summary["validation"] == pytest.approx(250, abs=45)
    assert summary["train"] == 1_000 - summary["validation"]
    assert set(sides["test"]["text"]) == set(TEXTS[1_000:1_100])


def test_an_empty_side_is_refused(tmp_path):
    with pytest.raises(DataError) as caught:
        run(tmp_path, clean_frame(["only", "these"]), HashSplit(validation=0.001, test=0.001))
    assert [str(p) for p in caught.value.problems] == [
        f"split = 'hash': none of 2 rows is for {side}; collect more rows, or give this side a larger share"
        for side in ("validation", "test")
    ]


def test_an_official_source_without_test_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="none of 100 rows is for test; name its source"):
        run(tmp_path, official(TEXTS[:100], [], []), OFFICIAL)


def test_a_label_that_training_never_shows_is_refused(tmp_path):
    rows = official(TEXTS[:10], TEXTS[10:14], TEXTS[14:20]).with_columns(
        label=pl.when(pl.col("split") == "test").then(pl.lit("rare")).otherwise("label")
    )
    with pytest.raises(DataError) as caught:
        run(tmp_path, rows, OFFICIAL)
    assert "task.labels = ['rare']: no training row has this label" in str(caught.value)
