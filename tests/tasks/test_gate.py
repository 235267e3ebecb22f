from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from schemas.recipe import Gate, Recipe, Threshold
from schemas.records import Check, Interval, Verdict
from tasks import gate, held_out
from tasks.candidates import Candidate
from tasks.checks import Comparison
from tasks.families import family_of
from tasks.slices import Slice

META = {"labels": ["no", "yes"]}
RECIPE = Recipe.model_validate(
    {
        "name": "gate",
        "task": {"family": "text-classification"},
        "collect": {"source": {"kind": "csv", "path": "rows.csv"}},
        "model": {"base": "./base"},
        "evaluate": {"metric": "accuracy", "bootstrap_resamples": 400, "slices": {"min_rows": 5}},
    }
)
FAMILY = family_of(RECIPE.task)


def predictions(n: int, wrong: int, swap: str = "no") -> pl.DataFrame:
    """Truth is yes, no, yes, …; the first `wrong` rows that are yes are taken for `swap`."""
    return pl.DataFrame(
        {
            "id": [f"r{i}" for i in range(n)],
            "truth": ["yes", "no"] * (n // 2),
            "prediction": [swap if i < wrong and i % 2 == 0 else ("yes", "no")[i % 2] for i in range(n)],
        }
    )


def candidate(rows: pl.DataFrame, parts: list[Slice] | None = None, trained_on: Any = ()) -> Candidate:
    return Candidate(
        summary={}, predictions=rows, parts=parts or [],
        trained_on=np.array(sorted(trained_on), np.uint64), identity="new",
    )  # fmt: skip


def compare(
    new: Candidate, old: pl.DataFrame, learnt: Any, *,
    labels: tuple[str, ...] = ("no", "yes"), margin: float | None = None,
) -> Comparison:  # fmt: skip
    """Row r<i> is known by the hash i."""
    ids = new.predictions["id"]
    hashes = pl.DataFrame({"id": ids, "hash": ids.str.slice(1).cast(pl.UInt64)})
    known = None if learnt is None else np.array(sorted(learnt), np.uint64)
    return gate.compare(
        RECIPE, FAMILY, META, new, old, version="3", labels=labels, hashes=hashes,
        trained_on_champion=known, slice_margin=margin,
    )  # fmt: skip


def test_what_the_champion_has_learnt_by_heart_does_not_count_for_it() -> None:
    # The champion is right everywhere; the challenger is wrong on r0, r2, …, r18, which the champion was trained on.
    new, old = candidate(predictions(100, 20)), predictions(100, 0)
    honest = compare(new, old, range(20))
    assert (honest.rows, honest.excluded) == (80, 20)
    assert honest.paired is not None
    assert honest.paired.gain == Interval(value=0, low=0, high=0)
    naive = compare(new, old, [])
    assert naive.paired is not None
    assert naive.paired.gain.value == pytest.approx(-0.1)


def test_what_the_challenger_has_learnt_does_not_count_either() -> None:
    assert compare(candidate(predictions(100, 0), trained_on=[3, 7]), predictions(100, 0), [7, 9]).rows == 97


def test_rows_are_counted_where_both_models_have_predicted() -> None:
    found = compare(candidate(predictions(100, 0)), predictions(60, 0), [0])
    assert (found.rows, found.excluded) == (59, 1)


def test_below_thirty_common_rows_nothing_is_measured() -> None:
    found = compare(candidate(predictions(40, 0)), predictions(40, 0), range(11))
    assert (found.rows, found.excluded, found.paired, found.problem) == (29, 11, None, None)


def test_a_champion_without_a_label_is_measured_where_it_knows_the_truth() -> None:
    rows = predictions(100, 0).with_columns(
        truth=pl.when(pl.int_range(100) < 10).then(pl.lit("maybe")).otherwise("truth"),
        prediction=pl.when(pl.int_range(100) < 20).then(pl.lit("maybe")).otherwise("prediction"),
    )
    old = rows.with_columns(prediction=predictions(100, 0)["prediction"])
    ids = rows["id"]
    found = gate.compare(
        RECIPE, FAMILY, {"labels": ["no", "yes", "maybe"]}, candidate(rows), old, version="3", labels=("no", "yes"),
        hashes=pl.DataFrame({"id": ids, "hash": ids.str.slice(1).cast(pl.UInt64)}),
        trained_on_champion=np.empty(0, np.uint64), slice_margin=None,
    )  # fmt: skip
    assert (found.rows, found.unknown_labels, found.note) == (90, 10, "labels new: maybe")
    assert found.paired is not None
    # Of the 90 rows that are yes or no the challenger takes ten for maybe; the champion is right on all.
    assert found.paired.gain.value == pytest.approx(-10 / 90)


def test_a_label_that_only_the_champion_knows_is_a_wrong_answer() -> None:
    found = compare(candidate(predictions(40, 0)), predictions(40, 10, swap="maybe"), [], labels=("no", "yes", "maybe"))
    assert found.paired is not None
    assert found.paired.gain.value == pytest.approx(5 / 40)
    assert found.note == "labels gone: maybe"


def test_a_champion_of_unknown_origin_is_a_problem_in_words() -> None:
    found = compare(candidate(predictions(40, 0)), predictions(40, 0), None)
    assert found.problem == "nobody knows which rows it was trained on"


def test_a_slice_that_got_worse_is_found_behind_an_equal_whole() -> None:
    half = np.arange(200) < 100
    # The challenger loses 40 right answers in the first half and wins as many in the second.
    truth, new, old = ["yes"] * 200, ["yes"] * 200, ["yes"] * 200
    new[:40] = ["no"] * 40
    old[100:140] = ["no"] * 40
    ids = [f"r{i}" for i in range(200)]
    ours, theirs = (pl.DataFrame({"id": ids, "truth": truth, "prediction": found}) for found in (new, old))
    parts = [Slice("half=first", "column", half), Slice("half=second", "column", ~half)]
    found = compare(candidate(ours, parts), theirs, [], margin=0.05)
    assert found.paired is not None
    assert found.paired.gain.value == pytest.approx(0)
    assert [part.name for part in found.weaker_on] == ["half=first"]
    assert found.weaker_on[0].value == pytest.approx(-0.4)
    assert found.slices == 2


def test_rows_are_known_by_their_normalised_text(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text(json.dumps({"text_column": "text"}))
    train = ["Good film!", "good FILM", "bad film"]
    pl.DataFrame({"id": ["a", "b", "c"], "text": train}).write_parquet(tmp_path / "train.parquet")
    pl.DataFrame({"id": ["d", "e"], "text": ["good, film", "new"]}).write_parquet(tmp_path / "test.parquet")
    trained, tested = held_out.training_hashes(tmp_path), held_out.test_hashes(tmp_path)
    assert trained.tolist() == sorted(set(trained.tolist()))
    assert len(trained) == 2
    assert tested["id"].to_list() == ["d", "e"]
    assert held_out.among(tested["hash"].to_numpy(), trained).tolist() == [True, False]


def test_the_shift_of_labels_is_the_largest_difference_of_shares() -> None:
    assert gate.largest_shift({"a": 50, "b": 50}, {"a": 8, "b": 2}) == pytest.approx(0.3)
    assert gate.largest_shift({"a": 50}, {"a": 5, "new": 5}) == pytest.approx(0.5)
    assert gate.largest_shift({}, {}) == 0


def gathered(asked: Gate, rows: pl.DataFrame, parts: list[Slice]) -> dict[str, Any]:
    summary = {"metrics": {}, "baselines": {}, "gains": {}, "rows": rows.height, "slices": [], "speed": {}}
    given = Candidate(summary=summary, predictions=rows, parts=parts, trained_on=None, identity=None)
    return gate.gather(RECIPE, FAMILY, META, asked, given)


def test_a_threshold_on_a_slice_is_measured_on_its_rows() -> None:
    rows = predictions(100, 20)
    parts = [Slice("source=web", "source", np.arange(100) < 40)]
    asked = Gate(thresholds=(Threshold(metric="accuracy", at_least=0.8, slice="source=web"),))
    measured = gathered(asked, rows, parts)["on_slices"]
    assert measured["accuracy", "source=web"].value == pytest.approx(30 / 40)
    missing = Gate(thresholds=(Threshold(metric="accuracy", at_least=0.8, slice="source=paper"),))
    assert gathered(missing, rows, parts)["on_slices"] == {}


def test_a_slice_below_the_floor_is_found_only_where_the_recipe_has_a_floor() -> None:
    rows = predictions(200, 100)  # the first hundred rows: half of them wrong
    parts = [Slice("source=web", "source", np.arange(200) < 100)]
    assert [part.name for part in gathered(Gate(slice_floor=0.8), rows, parts)["below_floor"]] == ["source=web"]
    assert gathered(Gate(slice_floor=0.4), rows, parts)["below_floor"] == []
    assert gathered(Gate(), rows, parts)["below_floor"] == []


def verdict(decision: Any, *checks: Check, rows_needed: int | None = None) -> Verdict:
    return Verdict(
        stage="gate", key="k", cached=False, why="", seconds=0, run_id="r",
        decision=decision, checks=checks, champion=None, rows_needed=rows_needed,
    )  # fmt: skip


def test_the_verdict_is_told_in_a_sentence_and_check_by_check() -> None:
    good = Check(name="threshold:accuracy", outcome="passed", rule="at least 0.5", found="0.8")
    bad = Check(name="champion:accuracy", outcome="failed", rule="better", found="broken | line")
    told = gate.verdict_markdown(verdict("reject", good, bad))
    assert told.startswith("**The gate is closed.** 1 of 2 checks failed.")
    assert "| ✅ | `threshold:accuracy` | at least 0.5 | 0.8 |" in told
    assert "| ❌ | `champion:accuracy` | better | broken \\| line |" in told
    assert gate.verdict_markdown(verdict("promote", good)).startswith("**The gate is open: the model may serve.**")
    assert "no checks" in gate.verdict_markdown(verdict("promote"))
    undecided = Check(name="champion:accuracy", outcome="undecidable", rule="better", found="?", rows_needed=9_000)
    assert "About 9,000 test rows would." in gate.verdict_markdown(verdict("undecidable", undecided, rows_needed=9_000))
