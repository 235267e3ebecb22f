from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from schemas.comparison import Candidate
from schemas.records import Interval
from tasks import comparing
from tasks.comparing import draw_comparison, front_of, measured, of_one_pace, recommended, without_test
from tasks.curve import PREDICTIONS
from tasks.families.text_classification import TextClassificationTask
from tests.tasks.test_tuning import LABELS, ROWS, accuracy, measure, predicted

SIDES = ("train", "validation", "test")


def candidate(name: str, **about: Any) -> Candidate:
    return Candidate(**{"name": name, "base": "/base", "method": "full"} | about)


def at(value: float, behind: tuple[float, float] | None, **about: Any) -> Candidate:
    """A candidate with a value, and the ends of what the best has more."""
    low, high = behind or (0.0, 0.0)
    gap = None if behind is None else Interval(value=(low + high) / 2, low=low, high=high)
    return candidate(value=Interval(value=value, low=value - 0.01, high=value + 0.01), behind=gap, **about)


def test_candidates_are_measured_on_the_same_rows_the_best_first() -> None:
    known = [
        (candidate("small", latency_ms=1.0), (predicted(0.7, 1),)),
        (candidate("large", latency_ms=5.0), (predicted(0.9, 2),)),
        (candidate("none", told="does not fit"), ()),
    ]
    large, small, none = measured(known, measure())
    assert [large.name, small.name, none.name] == ["large", "small", "none"]
    assert large.value is not None
    assert large.value.value == pytest.approx(accuracy(predicted(0.9, 2)))
    assert large.behind is None
    assert small.behind is not None
    gap = accuracy(predicted(0.9, 2)) - accuracy(predicted(0.7, 1))
    assert small.behind.value == pytest.approx(gap)
    assert small.behind.low > 0
    assert (large.front, small.front, none.value) == (True, True, None)


def test_what_seeds_differ_by_is_part_of_the_interval_but_not_of_a_trivial_models() -> None:
    seeds = tuple(predicted(right, n) for n, right in enumerate((0.8, 0.9, 0.85)))
    trivial = Candidate(name="tfidf", base=None, method=None)
    known = [(candidate("full", seeds=3), seeds), (trivial, (predicted(0.7, 9),))]
    full, tfidf = measured(known, measure())
    alone = measure().of(predicted(0.7, 9))
    assert tfidf.value == alone
    rows = measure().of(seeds[2])
    assert full.value is not None
    assert full.value.high - full.value.low > 2 * (rows.high - rows.low)


def test_the_front_is_what_nothing_beats_in_both() -> None:
    found = front_of(
        [
            at(0.9, None, name="large", latency_ms=9.0),
            at(0.8, (0.1, 0.1), name="middle", latency_ms=5.0),
            at(0.79, (0.1, 0.1), name="slow", latency_ms=6.0),
            at(0.5, (0.4, 0.4), name="small", latency_ms=1.0),
        ]
    )
    assert found == {"large", "middle", "small"}


def test_the_fastest_within_the_interval_of_the_best_is_recommended_with_its_reason() -> None:
    best = at(0.90, None, name="large", latency_ms=9.0)
    alike = at(0.89, (-0.01, 0.03), name="middle", latency_ms=5.0)
    as_fast = at(0.885, (-0.005, 0.035), name="other", latency_ms=4.9)
    behind = at(0.80, (0.05, 0.15), name="small", latency_ms=1.0)
    chosen, told = recommended([best, alike, as_fast, behind], "macro_f1")
    assert chosen == "middle", "of two that are as fast the better one"
    assert told == (
        "middle is the fastest within the interval of the best, large: 0.010 (-0.010 to 0.030) macro_f1 behind it "
        "at 5.0 ms against 9.0 ms"
    )
    assert recommended([best, behind], "macro_f1") == ("large", "large is the best, and no other one is as good")


def test_a_trivial_model_that_wins_is_said_to() -> None:
    trivial = at(0.9, None, name="tfidf", base=None, method=None)
    tuned = at(0.85, (0.02, 0.08), name="full", latency_ms=4.0)
    chosen, told = recommended([trivial, tuned], "macro_f1")
    assert chosen == "full"
    assert told == (
        "tfidf is the best: full is 0.050 (0.020 to 0.080) macro_f1 behind it; "
        "fine-tuning is not worth it on these rows"
    )


def test_a_trivial_model_that_is_as_good_is_said_to_be_no_worse() -> None:
    trivial = at(0.9, None, name="tfidf", base=None, method=None)
    tuned = at(0.89, (-0.01, 0.03), name="lora", latency_ms=4.0)
    chosen, told = recommended([trivial, tuned], "macro_f1")
    assert chosen == "lora"
    assert told == (
        "tfidf is no worse than any fine-tuned model, and costs next to nothing: "
        "lora is 0.010 (-0.010 to 0.030) macro_f1 behind it"
    )


def test_trivial_models_learn_from_the_rows_that_candidates_learn_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for side in ("train", "validation", "test"):
        pl.DataFrame({"id": [f"{side}{n}" for n in range(6)], "text": "t"}).write_parquet(tmp_path / f"{side}.parquet")
    seen = {}

    def fit(*, split: Path, **_: Any) -> dict[str, Any]:
        seen.update({side: pl.read_parquet(split / f"{side}.parquet", glob=False)["id"].to_list() for side in SIDES})
        return {}

    batches = [pa.record_batch({"id": ["train4", "train1"]}), pa.record_batch({"id": ["train1"]})]
    monkeypatch.setattr(comparing, "training_batches", lambda lessons: iter(batches))
    monkeypatch.setattr(comparing, "baseline_predictions", fit)
    comparing.validation_baselines(
        task=TextClassificationTask(), metric="accuracy", split=tmp_path, lessons=tmp_path, out=tmp_path
    )
    assert seen["train"] == ["train1", "train4"]
    assert seen["test"] == seen["validation"] == [f"validation{n}" for n in range(6)]
    assert pl.read_parquet(tmp_path / "train.parquet").height == 6, "the split itself is whole"


def test_models_of_one_shape_have_one_pace() -> None:
    timed = [
        candidate("full", size_mb=90.1, latency_ms=9.0, rows_per_second=100.0),
        candidate("lora", size_mb=90.2, latency_ms=4.0, rows_per_second=90.0),
        candidate("other", base="/large", size_mb=90.1, latency_ms=20.0, rows_per_second=10.0),
        Candidate(name="tfidf", base=None, method=None),
    ]
    found = of_one_pace(timed)
    assert [one.latency_ms for one in found] == [4.0, 4.0, 20.0, None]
    assert [one.rows_per_second for one in found] == [100.0, 100.0, 10.0, None]


def test_in_the_folder_that_candidates_see_validation_stands_where_the_test_was(tmp_path: Path) -> None:
    for name in ("train", "validation", "test"):
        pl.DataFrame({"id": [name]}).write_parquet(tmp_path / f"{name}.parquet")
    (tmp_path / "meta.json").write_text("{}")
    (tmp_path / "manifest.json").write_text("{}")
    with without_test(tmp_path) as folder:
        names = {file.stem: pl.read_parquet(file, glob=False)["id"][0] for file in folder.glob("*.parquet")}
        assert names == {"train": "train", "validation": "validation", "test": "validation"}
        assert (folder / "meta.json").exists()
        assert not (folder / "manifest.json").exists()


def test_a_comparison_is_a_page_with_a_picture_and_a_row_for_each(tmp_path: Path) -> None:
    folders = []
    for name, right in (("full", 0.9), ("lora", 0.895)):
        folder = tmp_path / name
        folder.mkdir()
        predicted(right, len(name)).write_parquet(folder / PREDICTIONS)
        folders.append(folder)
    baselines, tokens, out = (tmp_path / name for name in ("baselines", "tokens", "out"))
    for made in (baselines, tokens, out):
        made.mkdir()
    predicted(0.7, 3).write_parquet(baselines / "tfidf.parquet")
    (tokens / "meta.json").write_text(json.dumps({"labels": LABELS}))
    about = {"latency_ms": 4.0, "size_mb": 90.0, "parameters": 100, "learnt_parameters": 7, "train_seconds": 12.0}
    entries = [candidate("full", **about), candidate("lora", method="lora", **about), candidate("gone", told="no GPU")]
    found = draw_comparison(
        task=TextClassificationTask(), metric="accuracy", confidence=0.95, resamples=500, entries=entries,
        seeds=[1, 1, 0], tokens=tokens, predictions=folders, baselines=baselines, out=out,
    )  # fmt: skip
    assert [one["name"] for one in found["candidates"]] == ["full", "lora", "tfidf", "gone"]
    assert found["chosen"] == "full"
    page = (out / "report.md").read_text()
    assert "| gone | failed: no GPU |" in page
    assert "7 (7.00%)" in page
    assert f"On {ROWS:,} validation rows; the test rows played no part." in page
    assert (out / "comparison.png").stat().st_size > 10_000
    assert np.isfinite([one["value"]["value"] for one in found["candidates"][:3]]).all()
