from __future__ import annotations

import hashlib
import json
import random
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.data import HashSplit, NearDuplicates, OfficialSplit, Split, TimeSplit
from schemas.errors import DataError
from tasks import split
from tasks.families.text_classification import TextClassificationTask
from tasks.labels import Labelled
from tasks.rows import files
from tasks.signatures import signatures_of
from tasks.split_checks import label_shift, smallest_visible_difference

EXACT = NearDuplicates(search=False)
HASH = HashSplit(validation=0.2, test=0.2, near_duplicates=EXACT)
OFFICIAL = OfficialSplit(validation=0.25, near_duplicates=EXACT)
TIME = TimeSplit(validation_from=datetime(2024, 3, 1), test_from=datetime(2024, 4, 1), near_duplicates=EXACT)
FILES = 3


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


def run(folder: Path, rows: pl.DataFrame, how: Split = HASH):
    """Summary, and the rows of each side; the rows come in several files."""
    (folder / "clean" / "rows").mkdir(parents=True, exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    size = max(1, -(-rows.height // FILES))
    for number, start in enumerate(range(0, rows.height, size)):
        rows[start : start + size].write_parquet(folder / "clean" / "rows" / f"{number:05}.parquet")
    meta = {"labels": sorted(set(rows["label"])), "text_column": "text", "target_columns": ["label"]}
    meta |= Labelled("label").as_meta()
    (folder / "clean" / "meta.json").write_text(json.dumps(meta))
    parts = []
    if how.near_duplicates.search:
        for file in files(folder / "clean" / "rows"):
            parts.append(folder / "signatures" / file.stem)
            parts[-1].mkdir(parents=True, exist_ok=True)
            signatures_of(file, "text", how.near_duplicates.permutations, how.near_duplicates.bands, parts[-1])
    summary = split.split_rows(how, TextClassificationTask(), folder / "clean", parts or None, folder / "out")
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
    kept, before = (json.loads((tmp_path / folder / "meta.json").read_text()) for folder in ("out", "clean"))
    assert kept == before


def test_a_row_never_changes_sides_as_the_data_grows(tmp_path):
    _, few = run(tmp_path / "few", clean_frame(TEXTS[:500]))
    _, many = run(tmp_path / "many", clean_frame(TEXTS[::-1]))
    after = side_of(many)
    assert all(after[text] == side for text, side in side_of(few).items())


def test_a_smaller_test_share_only_takes_rows_from_the_test_side(tmp_path):
    _, wide = run(tmp_path / "wide", clean_frame(TEXTS), HashSplit(test=0.3, validation=0.1, near_duplicates=EXACT))
    _, narrow = run(tmp_path / "narrow", clean_frame(TEXTS), HashSplit(test=0.1, validation=0.1, near_duplicates=EXACT))
    assert set(narrow["test"]["text"]) < set(wide["test"]["text"])


def test_another_version_deals_anew(tmp_path):
    _, first = run(tmp_path / "1", clean_frame(TEXTS))
    _, second = run(
        tmp_path / "2", clean_frame(TEXTS), HashSplit(validation=0.2, test=0.2, version=2, near_duplicates=EXACT)
    )
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


def test_what_leaked_says_why_and_what_it_resembles(tmp_path):
    train = [*TEXTS[:10], "RT @a: held out!", "chosen by https://t.co/x"]
    rows = official(train, [*TEXTS[10:14], "chosen by", "Held out"], [*TEXTS[14:20], "held out"])
    summary, sides = run(tmp_path, rows, OFFICIAL)
    ids = dict(zip(rows["text"], rows["id"], strict=True))
    assert {text: (why, twin) for text, why, twin in sides["leaked"]["text", "reason", "twin"].iter_rows()} == {
        "RT @a: held out!": ("duplicate_of_test", ids["held out"]),
        "Held out": ("duplicate_of_test", ids["held out"]),
        "chosen by https://t.co/x": ("duplicate_of_validation", ids["chosen by"]),
    }
    assert summary["leaked_by_reason"] == {"duplicate_of_test": 2, "duplicate_of_validation": 1}


def sentences(count: int, seed: int = 1) -> list[str]:
    rng = random.Random(seed)
    words = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in "lmnrst"]
    return [" ".join(rng.choices(words, k=rng.randint(8, 20))) for _ in range(count)]


def edited(text: str, rng: random.Random) -> str:
    words = text.split()
    words[rng.randrange(len(words))] = "changed"
    return " ".join(words)


SEARCHED = {
    "hash": HashSplit(validation=0.2, test=0.2),
    "group": HashSplit(validation=0.2, test=0.2),
    "official": OfficialSplit(validation=0.25),
    "time": TimeSplit(validation_from=datetime(2024, 3, 1), test_from=datetime(2024, 4, 1)),
}


def varied(kind: str, texts: list[str]) -> pl.DataFrame:
    """Rows whose sides are dealt in one of four ways; what a row has follows from its text alone."""
    numbers = [int(hashlib.md5(text.encode()).hexdigest(), 16) for text in texts]
    rows = clean_frame(texts).with_columns(
        id=pl.Series([hashlib.sha1(text.encode()).hexdigest() for text in texts]),
        label=pl.Series([("pos", "neg")[n % 3 == 0] for n in numbers]),
    )
    if kind == "group":
        return rows.with_columns(group=pl.Series([f"author {n % 50}" for n in numbers]))
    if kind == "official":
        return rows.with_columns(split=pl.Series([("train", "train", "dev", "test")[n % 4] for n in numbers]))
    if kind == "time":
        return rows.with_columns(
            time=pl.Series([datetime(2024, 1, 1, tzinfo=UTC) + timedelta(n % 120) for n in numbers])
        )
    return rows


@pytest.mark.parametrize("kind", SEARCHED)
def test_a_byte_for_every_clean_row_says_which_file_it_is_the_next_of(tmp_path, kind):
    texts = [*TEXTS[:300], *(f"@x {text}!" for text in TEXTS[:40])]
    rows = varied(kind, texts)
    _, sides = run(tmp_path, rows, SEARCHED[kind])
    codes = (tmp_path / "out" / "sides.u8").read_bytes()
    assert len(codes) == rows.height
    for code, name in enumerate(["test", "validation", "train", "leaked"]):
        of_side = [row for row, byte in zip(rows["id"], codes, strict=True) if byte == code]
        assert of_side == sides[name]["id"].to_list() != []


@pytest.mark.parametrize("kind", SEARCHED)
def test_as_the_data_grows_no_row_changes_sides_and_the_test_only_grows(tmp_path, kind):
    rng = random.Random(3)
    old = sentences(1_000)
    new = [*sentences(50, seed=2), *(edited(text, rng) for text in rng.sample(old, 50))]
    _, before = run(tmp_path / "before", varied(kind, old), SEARCHED[kind])
    everything = [*new, *old]
    rng.shuffle(everything)
    summary, after = run(tmp_path / "after", varied(kind, everything), SEARCHED[kind])
    then, now = side_of(before), side_of(after)
    assert all(now[text] in {side, "leaked"} for text, side in then.items() if side != "leaked")
    assert set(before["test"]["text"]) < set(after["test"]["text"])
    assert sum(summary["leaked_by_reason"].values()) >= 25


@settings(max_examples=15, deadline=None)
@given(order=st.randoms(use_true_random=False), kind=st.sampled_from(sorted(SEARCHED)))
def test_the_order_of_the_rows_changes_nothing(tmp_path_factory, order, kind):
    rng = random.Random(4)
    texts = sentences(300)
    texts += [edited(text, rng) for text in texts[:80]]
    texts += [f"@x {text}!" for text in texts[:20]]
    rows = varied(kind, texts)
    first, sides = run(tmp_path_factory.mktemp("a"), rows, SEARCHED[kind])
    shuffled, again = run(
        tmp_path_factory.mktemp("b"), rows[order.sample(range(len(texts)), len(texts))], SEARCHED[kind]
    )
    assert first == shuffled
    assert all(frame.sort("id").equals(again[name].sort("id")) for name, frame in sides.items())


def test_sides_are_dealt_by_time(tmp_path):
    moments = ["2024-02-29T23:59:59.999999", "2024-03-01T00:00:00", "2024-03-31T23:59:59", "2024-04-01T00:00:00", None]
    times = [moment and datetime.fromisoformat(moment).replace(tzinfo=UTC) for moment in moments]
    rows = clean_frame(["long ago", "first of march", "last of march", "april", "never"]).with_columns(
        label=pl.lit("a"), time=pl.Series(times, dtype=pl.Datetime("us", "UTC"))
    )
    summary, sides = run(tmp_path, rows, TIME)
    assert side_of(sides) == {
        "long ago": "train",
        "first of march": "validation",
        "last of march": "validation",
        "april": "test",
        "never": "leaked",
    }
    assert sides["leaked"]["reason", "twin"].rows() == [("no_time", None)]
    assert summary["leaked_by_reason"] == {"no_time": 1}


def test_a_boundary_with_a_zone_is_that_moment(tmp_path):
    zone = timezone(timedelta(hours=2))
    how = TIME.model_copy(update={"test_from": datetime(2024, 4, 1, tzinfo=zone)})
    times = [datetime(2024, 1, 1), datetime(2024, 3, 31, 21, 59), datetime(2024, 3, 31, 22, 0)]
    rows = clean_frame(["one", "two", "three"]).with_columns(
        label=pl.lit("a"), time=pl.Series([time.replace(tzinfo=UTC) for time in times], dtype=pl.Datetime("us", "UTC"))
    )
    _, sides = run(tmp_path, rows, how)
    assert side_of(sides) == {"one": "train", "two": "validation", "three": "test"}


def test_a_split_by_time_needs_times(tmp_path):
    with pytest.raises(DataError, match=r"collect\.time_column: rows have no time to be split by"):
        run(tmp_path, clean_frame(TEXTS[:10]), TIME)


def test_all_that_is_too_small_is_said_at_once(tmp_path):
    rows = official(TEXTS[:10], TEXTS[10:14], TEXTS[14:20]).with_columns(
        label=pl.when(pl.col("row").is_in([1, 11, 15])).then(pl.lit("rare")).otherwise(pl.lit("common"))
    )
    how = OFFICIAL.model_copy(update={"min_rows": 5, "min_rows_per_label": 2})
    with pytest.raises(DataError) as caught:
        run(tmp_path, rows, how)
    remedy = "collect more rows, or ask for fewer"
    assert [str(p) for p in caught.value.problems] == [
        f"split.min_rows_per_label = 2: train has 1 of 'rare'; {remedy}",
        f"split.min_rows = 5: validation has 4 rows; {remedy}",
        f"split.min_rows_per_label = 2: validation has 1 of 'rare'; {remedy}",
        f"split.min_rows_per_label = 2: test has 1 of 'rare'; {remedy}",
    ]


def test_sides_unlike_the_whole_and_small_tests_are_warned_of(tmp_path, caplog):
    rows = official(TEXTS[:400], TEXTS[400:500], TEXTS[500:600]).with_columns(
        label=pl.when(pl.col("row") > 560)
        .then(pl.lit("late"))
        .when(pl.col("row") % 10 == 0)
        .then(pl.lit("late"))
        .otherwise(pl.lit("x"))
    )
    summary, _ = run(tmp_path, rows, OFFICIAL)
    # Of 600 rows 60 and the last 36 that are no multiple of ten are late, of the 100 test rows 10 - 4 + 40 = 46.
    assert summary["label_shift"]["test"]["largest"] == pytest.approx(0.46 - 96 / 600)
    # Validation is off by as much as train, which so few rows are by chance.
    assert [record.getMessage() for record in caplog.records] == [
        "labels of train are unlike the whole: a share is off by 6.0 points",
        "labels of test are unlike the whole: a share is off by 30.0 points",
        "the test has 100 rows: differences below 8.8 points cannot be seen",
    ]


def test_shift_is_the_chi_square_of_a_side_against_the_others():
    found = label_shift({"train": {"a": 60, "b": 40}, "validation": {"a": 10, "b": 10}, "test": {"b": 30}})
    # By hand for test: 70 a and 80 b among 150; a side of 30 without an a. n(ad - bc)² / products of the margins.
    square = 150 * (0 * 50 - 30 * 70) ** 2 / (30 * 120 * 70 * 80)
    from scipy.stats import chi2, chi2_contingency

    assert found["test"] == {"largest": pytest.approx(70 / 150), "p": pytest.approx(chi2.sf(square, 1))}
    others = {"train": {"a": 50, "b": 30, "c": 20}, "validation": {"a": 5, "c": 1}, "test": {"a": 8, "b": 9, "c": 3}}
    whole = chi2_contingency([[8, 9, 3], [55, 30, 21]], correction=False)
    assert label_shift(others)["test"]["p"] == pytest.approx(whole.pvalue)
    assert label_shift({"train": {}, "validation": {}, "test": {}}) == {}


@pytest.mark.parametrize("rows", [50, 200, 3_000, 100_000])
def test_the_smallest_visible_difference_needs_this_many_rows(rows):
    """The published formula, put the other way round: rows needed to see the difference."""
    d = smallest_visible_difference(rows)
    assert ((1.959964 * 0.1**0.5 + 0.841621 * (0.1 - d**2) ** 0.5) / d) ** 2 == pytest.approx(rows)


def test_the_visible_difference_is_seen_four_times_in_five():
    """By simulation: McNemar's test of 1,000 rows in which 10 % of the predictions differ."""
    import numpy as np

    rows, d = 1_000, smallest_visible_difference(1_000)
    rng = np.random.default_rng(0)
    better, worse, _ = rng.multinomial(rows, [(0.1 + d) / 2, (0.1 - d) / 2, 0.9], size=20_000).T
    seen = np.abs(better - worse) / np.sqrt(better + worse) > 1.959964
    assert seen.mean() == pytest.approx(0.8, abs=0.02)


def test_side_numbers_are_those_of_every_version_so_far(tmp_path):
    """The rule as it was written when the first project was split, row by row."""
    texts = ["", "Größe 7", "😀", *TEXTS[:500]]
    rows = pl.DataFrame({"__likeness": texts, "group": [None if i % 3 else f"g{i}" for i in range(len(texts))]})

    def number(key: str) -> float:
        return (int.from_bytes(hashlib.blake2b(f"7:{key}".encode(), digest_size=8).digest(), "big") >> 11) / 2**53

    expected = ["test" if number(group or text) < 0.5 else "train" for text, group in rows.iter_rows()]
    assert split.hash_sides(rows, 7, {"test": 0.5}).to_list() == expected
