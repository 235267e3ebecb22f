from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import f1_score

from schemas.errors import Fault
from schemas.recipe import Gate, Recipe, Threshold
from schemas.records import Check, Interval, Verdict
from tasks import gate, held_out
from tasks.candidates import Candidate
from tasks.checks import Comparison
from tasks.context import Context
from tasks.families import family_of
from tasks.home import Home
from tasks.registry import Registered
from tasks.slices import Slice
from tests.prepared import Asked, Prepared, answer, version

pytest_plugins = ("tests.mlflow_home",)

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
    assert "| passed | `threshold:accuracy` | at least 0.5 | 0.8 |" in told
    assert "| **FAILED** | `champion:accuracy` | better | broken \\| line |" in told
    assert gate.verdict_markdown(verdict("promote", good)).startswith("**The gate is open: the model may serve.**")
    assert "no checks" in gate.verdict_markdown(verdict("promote"))
    undecided = Check(name="champion:accuracy", outcome="undecidable", rule="better", found="?", rows_needed=9_000)
    assert "About 9,000 test rows would." in gate.verdict_markdown(verdict("undecidable", undecided, rows_needed=9_000))


# The stage.


SERVING = version("old", number="2")
SUMMARY = {
    "metrics": {"macro_f1": 0.9, "macro_f1_low": 0.8, "macro_f1_high": 1.0}, "baselines": {}, "gains": {}, "rows": 40,
    "slices": [], "speed": {},
}  # fmt: skip


class Stage:
    """The stage on prepared rows, for a candidate that is right on nine of ten, and whoever serves."""

    def __init__(self, home: Home, recipe: Recipe, patch: pytest.MonkeyPatch) -> None:
        asked = recipe.evaluate.model_copy(update={"bootstrap_resamples": 200})
        recipe = recipe.model_copy(update={"evaluate": asked, "gate": Gate(beat_baseline=False)})
        self.context = Context(recipe, home, run_id="r")
        self.prepared = Prepared(self.context)
        self._patch = patch
        said = [label if i % 10 else {"bad": "good", "good": "bad"}[label] for i, label in enumerate(self.truth)]
        rows = pl.DataFrame({"id": self.prepared.test["id"], "truth": self.truth, "prediction": said})
        found = Candidate(SUMMARY, rows, [], np.empty(0, np.uint64), "new")
        patch.setattr(gate, "trained_candidate", lambda *args: found)
        self.serves(None)

    @property
    def truth(self) -> list[str]:
        return self.prepared.test["label"].to_list()

    def serves(self, champion: Registered | None, *, trained_on: Any = (), labels: Any = ("bad", "good")) -> None:
        """Let somebody serve who is right on every row, and was trained on rows of these texts."""
        known = np.unique(held_out.known_by(trained_on))
        self._patch.setattr(gate, "champion", lambda *args: champion)
        self._patch.setattr(gate, "training_hashes_of", lambda *args: known)
        self._patch.setattr(gate, "known_labels", lambda *args: labels)
        self.asked = Asked(self._patch, lambda text: answer(text.split()[1].lower()))

    def __call__(self, scores: str = "k") -> Verdict:
        rows = self.prepared
        cleaned = rows.raw.model_copy(update={"summary": {"quarantined": {}}})
        sides = rows.sides.model_copy(
            update={"summary": {"leaked_by_reason": {}, "labels": {"train": {"bad": 30}, "test": {"bad": 20}}}}
        )
        tokens = rows.tokens.model_copy(update={"summary": {"dropped": {}, "truncated": {"test": 0.0}}})
        return gate.gate(
            self.context, raw=rows.raw, cleaned=cleaned, sides=sides, tokens=tokens, model=rows.tokens,
            scores=rows.raw.model_copy(update={"key": scores}),
        )  # fmt: skip


@pytest.fixture
def stage(home: Home, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(home, recipe, monkeypatch)


def test_the_first_model_has_nobody_to_beat(stage: Stage) -> None:
    found = stage()
    assert (found.stage, found.decision, found.champion, found.same_model) == ("gate", "promote", None, False)
    assert [check.found for check in found.checks] == ["no champion yet"]


def test_the_champion_is_asked_and_a_worse_model_is_rejected(stage: Stage) -> None:
    stage.serves(SERVING)
    found = stage()
    assert stage.asked.uris == ["models:/tiny/2"]
    assert (found.decision, found.champion) == ("reject", "2")
    (check,) = found.checks
    # Four of forty rows are wrong, all of them bad ones: r0, r10, r20, r30.
    expected = f1_score(stage.truth, [t if i % 10 else "good" for i, t in enumerate(stage.truth)], average="macro") - 1
    assert check.found.startswith(f"{expected:+.4f} (95% interval")
    assert "over version 2 on 40 rows" in check.found


def test_a_champion_that_is_this_very_model_is_not_asked(stage: Stage) -> None:
    stage.serves(version("new", number="2"))
    found = stage()
    assert (found.decision, found.same_model, found.champion) == ("promote", True, "2")
    assert stage.asked.uris == []


def test_a_champion_on_whose_training_rows_nothing_is_left_decides_nothing(stage: Stage) -> None:
    stage.serves(SERVING, trained_on=[f"test {label} {i}" for i, label in enumerate(stage.truth) if i >= 20])
    found = stage()
    assert (found.decision, found.rows_needed) == ("undecidable", None)
    assert found.checks[0].found == (
        "only 20 test rows are common ground with version 2, 20 left out because one of the two was trained on them; "
        "30 are needed"
    )


@pytest.mark.parametrize("lost", ["training_hashes_of", "known_labels"])
def test_a_champion_that_lost_its_files_is_not_asked_and_decides_nothing(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    def gone(*args: Any) -> None:
        raise FileNotFoundError("tiny version 2 has no artifacts/model")

    stage.serves(SERVING)
    monkeypatch.setattr(gate, lost, gone)
    found = stage()
    assert (found.decision, found.champion, found.passed) == ("undecidable", "2", False)
    assert found.checks[0].found == "version 2 could not be measured: tiny version 2 has no artifacts/model"
    assert stage.asked.uris == []


def test_a_champion_that_does_not_answer_decides_nothing(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(text: str) -> Any:
        raise Fault("a fresh process cannot predict with the logged model\nTraceback, line 1")

    stage.serves(SERVING)
    Asked(monkeypatch, fail)
    found = stage()
    assert found.decision == "undecidable"
    assert found.checks[0].found.endswith("could not be measured: a fresh process cannot predict with the logged model")


def test_a_verdict_is_found_anew_each_time_and_known_by_what_it_is_of(stage: Stage) -> None:
    first, again = stage(), stage()
    assert (first.cached, again.cached, first.key) == (False, False, again.key)
    assert stage(scores="of another model").key != first.key
    stage.serves(SERVING)
    assert stage().key != first.key
