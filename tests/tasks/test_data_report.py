from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import polars as pl
import pytest

from schemas.loading import validate_recipe
from tasks import data_profile, drift
from tasks.context import Context
from tasks.data_profile import Profile, edges, measure, quantiles
from tasks.data_report import KEPT_SNAPSHOTS, data_report, last_snapshot, remember, snapshots, write_report
from tasks.drift import Finding, Turnover
from tasks.fallen import read_fallen
from tasks.home import Home
from tasks.labels import Labelled
from tasks.markdown import plain, shortened, table

ROW = {"row": pl.UInt32}
Sides = dict[str, list[tuple[str, str, str]]]
SIDES: Sides = {
    "train": [
        ("a", "good film", "pos"),
        ("b", "bad film", "neg"),
        ("c", "good good play", "pos"),
        ("d", "it is", "neg"),
    ],
    "validation": [("e", "good film again", "pos")],
    "test": [("f", "a bad film", "neg")],
}


def write_split(folder: Path, sides: Sides, leaked: list[dict[str, Any]] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    row = 0
    for side in ("train", "validation", "test"):
        rows = [
            {
                "id": i,
                "source": "x.csv" if len(text) % 2 else "y.csv",
                "row": (row := row + 1),
                "text": text,
                "label": label,
            }
            for i, text, label in sides[side]
        ]
        frame = pl.DataFrame(rows, schema={"id": str, "source": str, "row": pl.UInt32, "text": str, "label": str})
        frame.write_parquet(folder / f"{side}.parquet")
    schema = dict.fromkeys(("id", "source", "text", "label", "reason", "twin"), pl.String) | ROW
    pl.DataFrame(leaked or [], schema=schema).write_parquet(folder / "leaked.parquet")
    labels = sorted({label for rows in sides.values() for _, _, label in rows})
    meta = {"labels": labels, "text_column": "text", "target_columns": ["label"]} | Labelled("label").as_meta()
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def write_clean(folder: Path, quarantine: list[dict[str, Any]] | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    schema = dict.fromkeys(("source", "id", "text", "label", "raw", "reason"), pl.String) | ROW
    pl.DataFrame(quarantine or [], schema=schema).write_parquet(folder / "quarantine.parquet")
    return folder


QUARANTINE: list[dict[str, Any]] = [
    {"source": "x.csv", "row": 7, "id": "q", "text": "x" * 200, "label": "pos", "reason": "too_long"},
    {"source": "x.csv", "row": 8, "id": "r", "text": "<b>|*", "label": "pos", "reason": "too_long"},
    {"source": "z.csv", "row": 9, "raw": '"broken', "reason": "broken_quotes"},
]
LEAKED: list[dict[str, Any]] = [
    {
        "id": "t",
        "source": "x.csv",
        "row": 10,
        "text": "a bad film!",
        "label": "neg",
        "reason": "duplicate_of_test",
        "twin": "f",
    }
]


@pytest.fixture(autouse=True)
def every_word_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_profile, "FEWEST_ROWS", 1)


def report(folder: Path, **more: Any) -> tuple[dict[str, Any], str]:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    options = {"recipe": "r", "text_column": "text", "examples": 2, "before": None, "snapshot": None,
               "marks_before": lambda: None, "summaries": {}}  # fmt: skip
    paths = {"clean": folder / "clean", "split": folder / "split", "out": out}
    summary = write_report(**{**options, **paths, **more})
    return summary, (out / "report.md").read_text()


def test_stability_index_by_hand():
    # (.25 - .5) ln .5 + (.75 - .5) ln 1.5
    assert drift.stability_index([50, 50], [25, 75]) == pytest.approx(0.17329 + 0.10137, abs=1e-5)
    assert drift.stability_index([3, 7], [30, 70]) == pytest.approx(0)


def test_an_empty_bin_counts_as_half_a_row_in_the_stability_index():
    # shares 10/10 and 0/10 → 0.05
    assert drift.stability_index([5, 5], [10, 0]) == pytest.approx(0.5 * math.log(2) + (0.05 - 0.5) * math.log(0.1))


def test_total_variation_by_hand():
    assert drift.total_variation([1, 1], [3, 1]) == pytest.approx(0.25)
    assert drift.total_variation([5, 0], [0, 9]) == pytest.approx(1)


def test_jensen_shannon_by_hand():
    assert drift.jensen_shannon([1, 0], [0, 7]) == pytest.approx(1)
    # m = (3/4, 1/4): half of log2(4/3), and half of half of log2(2/3) + half of log2(2)
    divergence = 0.5 * math.log2(4 / 3) + 0.5 * (0.5 * math.log2(2 / 3) + 0.5 * math.log2(2))
    assert drift.jensen_shannon([1, 0], [1, 1]) == pytest.approx(math.sqrt(divergence))


def test_kolmogorov_smirnov_by_hand():
    assert drift.kolmogorov_smirnov([1, 1, 1, 1], [0, 0, 2, 2]) == pytest.approx(0.5)


def test_bins_are_put_together_to_tenths_of_the_earlier_rows():
    before, after = drift.in_tenths([0, 5, 5, 80, 10, 0], [1, 2, 3, 4, 5, 6])
    # Shares begin at 0, 0, .05, .1, .9 and 1: tenths 0, 0, 0, 1, 9, and the empty end joins the last.
    assert (before, after) == ([10, 80, 10], [6, 4, 11])


def test_turnover_counts_new_vanished_and_moved_rows():
    def marks(*rows: tuple[int, int]) -> np.ndarray[Any, Any]:
        return np.sort(np.array([name << 2 | side for name, side in rows], np.uint64))

    before, after = marks((1, 0), (2, 0), (3, 2), (9, 1)), marks((2, 0), (3, 0), (4, 0), (5, 1), (9, 1))
    assert drift.turnover(before, after, size=2) == Turnover(new=2, vanished=1, kept=3, moved=1)
    assert drift.turnover(before, marks()) == Turnover(new=0, vanished=4, kept=0, moved=0)
    assert drift.turnover(marks(), after) == Turnover(new=5, vanished=0, kept=0, moved=0)


@pytest.mark.parametrize(
    ("value", "p", "verdict"),
    [(0.09, 0, "none"), (0.1, 0, "slight"), (0.25, 0, "strong"), (0.9, 0.001, "none"), (0.9, 0.0009, "strong")],
)
def test_a_verdict_needs_size_and_more_than_chance(value, p, verdict):
    assert Finding("lengths", "population stability index", value, p).verdict == verdict


def test_samples_of_one_distribution_show_no_drift_and_of_another_do():
    random = np.random.default_rng(0)
    words = [f"w{i}" for i in range(3_000)]
    shares = 1 / np.arange(1, 3_001)

    def sample(shares: Any, rows: int) -> dict[str, int]:
        counts = random.multinomial(rows, shares / shares.sum())
        return {word: int(count) for word, count in zip(words, counts, strict=True) if count}

    few, many = sample(shares, 500), sample(shares, 50_000)
    assert drift.word_shift(few, many).verdict == "none"
    assert drift.word_shift(many, sample(shares[::-1], 50_000)).verdict == "strong"


def test_lengths_have_exact_quantiles_below_64_and_near_ones_above(tmp_path):
    starts = edges()
    assert starts[0] == 0
    assert (np.diff(starts) > 0).all()
    counts = [0] * len(starts)
    for chars in [3] * 50 + [10] * 49 + [1_000]:
        counts[int(np.searchsorted(starts, chars, side="right")) - 1] += 1
    assert quantiles(counts, (0.5, 0.51, 0.99)) == [3, 10, 10]
    assert quantiles(counts, (1,))[0] == pytest.approx(1_000, rel=0.1)
    assert quantiles([0] * len(starts), (0.5,)) == [0]


def test_a_profile_counts_rows_labels_lengths_and_words(tmp_path):
    found = measure(write_split(tmp_path, SIDES), "text", Labelled("label"))
    profile = found.profile
    assert profile.rows == {"train": 4, "validation": 1, "test": 1}
    assert profile.labels == {"train": {"neg": 2, "pos": 2}, "validation": {"pos": 1}, "test": {"neg": 1}}
    assert (profile.shortest, profile.longest) == (5, 15)
    assert {chars: count for chars, count in enumerate(profile.lengths) if count} == {
        5: 1,
        8: 1,
        9: 1,
        10: 1,
        14: 1,
        15: 1,
    }
    assert profile.words == {"film": 4, "good": 3, "bad": 2, "a": 1, "again": 1, "is": 1, "it": 1, "play": 1}
    assert list(profile.words)[:4] == ["film", "good", "bad", "a"]
    assert found.sources == {"x.csv": 3, "y.csv": 3}
    assert sorted(int(mark) & 3 for mark in found.marks) == [0, 0, 0, 0, 1, 2]
    assert Profile.from_dict(json.loads(json.dumps(profile.as_dict()))) == profile
    assert Profile.from_dict(profile.as_dict() | {"format": 0}) is None


def test_a_profile_does_not_depend_on_the_order_of_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(data_profile, "WORD_ROWS", 100)
    rows = [(f"id{i}", f"word{i % 40} common", "pos") for i in range(1_000)]
    one = measure(write_split(tmp_path / "1", SIDES | {"train": rows}), "text", Labelled("label"))
    other = measure(write_split(tmp_path / "2", SIDES | {"train": rows[::-1]}), "text", Labelled("label"))
    assert one.profile == other.profile
    assert (one.marks == other.marks).all()
    assert one.profile.word_rows == pytest.approx(100, abs=40)


def test_rare_words_are_not_kept_because_they_tell_of_persons(tmp_path, monkeypatch):
    monkeypatch.setattr(data_profile, "FEWEST_ROWS", 3)
    found = measure(write_split(tmp_path, SIDES), "text", Labelled("label"))
    assert found.profile.words == {"film": 4, "good": 3}


def test_the_report_tells_where_rows_went(tmp_path):
    write_clean(tmp_path / "clean", QUARANTINE)
    write_split(tmp_path / "split", SIDES, LEAKED)
    summary, page = report(
        tmp_path, summaries={"clean": {"repaired": 1_234}, "split": {"smallest_visible_difference": 0.021}}
    )
    assert summary["rows"] == {"kept": 6, "quarantined": 3, "leaked": 1}
    assert "**10 rows collected: 6 kept, 3 quarantined, 1 leaked.** There is no earlier snapshot" in page
    assert "| x.csv | 6 | 3 | 2 | 1 |" in page
    assert "| z.csv | 1 | 0 | 1 | 0 |" in page
    assert "| `too_long` | clean | 2 | 20.00% |" in page
    assert "| `duplicate_of_test` | split | 1 | 10.00% |" in page
    assert f"- `too_long` x.csv:7: {'x' * 89}…\n" in page
    assert r"- `too_long` x.csv:8: \<b>\|\*" in page
    assert '- `broken_quotes` z.csv:9: "broken' in page
    assert "| neg | 3 | 50.0% | 0.0% | 100.0% |" in page
    assert "| train | 4 | 66.67% |" in page
    assert "| any repair | 1,234 |" in page
    assert "differences from 2.1 points" in page
    assert "![" not in page
    for picture in ("sources.png", "labels.png", "lengths.png"):
        assert picture in page
        assert matplotlib.image.imread(tmp_path / "out" / picture).shape[0] > 200


def test_a_report_without_examples_shows_no_text(tmp_path):
    write_clean(tmp_path / "clean", QUARANTINE)
    write_split(tmp_path / "split", SIDES, LEAKED)
    _, page = report(tmp_path, examples=0)
    assert "xxx" not in page
    assert "bad film" not in page
    assert read_fallen(tmp_path / "clean" / "quarantine.parquet", "text", 0).reasons == {
        "too_long": 2,
        "broken_quotes": 1,
    }


def test_rows_without_labels_are_reported_without_labels(tmp_path):
    write_clean(tmp_path / "clean")
    write_split(tmp_path / "split", SIDES)
    (tmp_path / "split" / "meta.json").write_text(json.dumps({"target_columns": ["tags"]}))
    _, page = report(tmp_path)
    assert "## Labels" not in page
    assert "## Rows set aside\n\nNone." in page
    assert not (tmp_path / "out" / "labels.png").exists()


def test_drift_is_told_against_the_snapshot_before(tmp_path):
    write_clean(tmp_path / "clean")
    old: Sides = SIDES | {"train": [(f"old{i}", "a short film", ("pos", "neg")[i % 2]) for i in range(500)]}
    new: Sides = SIDES | {"train": [(f"new{i}", "novel words in a much longer text", "pos") for i in range(500)]}
    before = measure(write_split(tmp_path / "split", old), "text", Labelled("label"))
    np.save(tmp_path / "marks.npy", before.marks)
    write_split(tmp_path / "split", new)
    snapshot = {
        "at": "2024-05-01T00:00:00+00:00",
        "key": "k",
        "profile": json.loads(json.dumps(before.profile.as_dict())),
    }
    summary, page = report(tmp_path, before="k", snapshot=snapshot, marks_before=lambda: tmp_path / "marks.npy")
    assert summary["drift"] == {"labels": "strong", "lengths": "strong", "vocabulary": "strong"}
    assert summary["turnover"] == {"new": 500, "vanished": 500, "kept": 2, "moved": 0}
    assert "Drift since 2024-05-01T00:00:00+00:00: labels strong, lengths strong, vocabulary strong." in page
    assert "500 new rows, 500 vanished, 2 in both. None of them changed sides." in page
    assert "in (0.00% → 99.60%)" in page
    assert "Words that lost most, by share of the rows: film (100.00% → 0.40%), short (99.60% → 0.00%)" in page
    _, page = report(tmp_path, before="k", snapshot=snapshot, marks_before=lambda: None)
    assert "which are new is not known" in page


@pytest.fixture
def make(tmp_path, monkeypatch):
    monkeypatch.setenv("HONE_HOME", str(tmp_path / "home"))
    recipe = validate_recipe(
        {"name": "r", "task": {"family": "text-classification"}, "model": {"base": "b"},
         "collect": {"source": {"kind": "csv", "path": "x.csv"}}}
    )  # fmt: skip
    return lambda: Context(recipe, Home.open(tmp_path), "run")


def collected(version, out):
    (out / "version").write_text(version)
    return {"rows": 10}


def cleaned(raw, out):
    write_clean(out, QUARANTINE)
    return {"repaired": 0}


def split_of(version, clean, out):
    extra = [(f"{version}{i}", "one more text", "pos") for i in range(3)]
    write_split(out, SIDES | {"train": [*SIDES["train"], *extra]}, LEAKED)
    return {}


def run(context, version):
    raw = context.artifact("collect", collected, settings={"version": version})
    clean = context.artifact("clean", cleaned, settings={}, inputs={"raw": raw})
    sides = context.artifact("split", split_of, settings={"version": version}, inputs={"clean": clean})
    return data_report(context, raw, clean, sides)


def test_each_snapshot_is_compared_with_the_one_before_and_a_second_run_computes_nothing(make):
    first = run(make(), "one")
    assert first.summary["before"] is None
    second = run(make(), "two")
    assert second.summary["turnover"] == {"new": 3, "vanished": 3, "kept": 6, "moved": 0}
    assert second.summary["before"] == snapshots(make().home, "r")[0]["at"]
    again = run(make(), "two")
    assert (again.cached, again.key) == (True, second.key)
    assert [line["report"] for line in snapshots(make().home, "r")] == [first.key, second.key]


def test_a_report_whose_forerunner_is_gone_says_so_and_is_made(make, caplog):
    first = run(make(), "one")
    make().store.discard("data-report", first.key)
    second = run(make(), "two")
    assert second.summary["turnover"] is None
    assert second.summary["drift"] == {"labels": "none", "lengths": "none", "vocabulary": "none"}
    assert "which rows are new is not known" in caplog.text


def test_the_journal_keeps_one_line_for_each_snapshot_and_not_for_ever(make):
    home = make().home
    for i in (*range(KEPT_SNAPSHOTS + 2), KEPT_SNAPSHOTS):
        remember(home, "r", {"key": str(i)})
    keys = [line["key"] for line in snapshots(home, "r")]
    assert keys == [str(i) for i in range(2, KEPT_SNAPSHOTS + 2)]
    newest = str(KEPT_SNAPSHOTS + 1)
    before = last_snapshot(home, "r", newest)
    assert before is not None
    assert before["key"] == str(KEPT_SNAPSHOTS)


def test_text_from_outside_does_not_become_markup():
    assert plain("a|b\n<img> [x]") == r"a\|b \<img> \[x]"
    assert shortened("abc  def", 7) == "abc def"
    assert shortened("abcdefgh", 7) == "abcdef…"
    assert table(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"
