from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.stats import t

from schemas.loading import validate_recipe
from schemas.records import Interval
from schemas.tune import Finalist, Trial
from tasks.curve import PREDICTIONS
from tasks.families import family_of
from tasks.families.text_classification import TextClassificationTask
from tasks.measure import Measure, mean_of, widened
from tasks.tuning import Group, draw_conclusion, judged, measured

LABELS = ["bad", "good"]
ROWS = 2_000
TRUTH = np.random.default_rng(5).integers(0, 2, ROWS)
EASE = np.random.default_rng(6).random(ROWS)


def predicted(right: float, seed: int) -> pl.DataFrame:
    """So many right; which ones is mostly the same for every model."""
    wrong = EASE + 0.05 * np.random.default_rng(seed).standard_normal(ROWS) > right
    return pl.DataFrame(
        {
            "id": [f"v{i}" for i in range(ROWS)],
            "truth": [LABELS[i] for i in TRUTH],
            "prediction": [LABELS[i] for i in TRUTH ^ wrong],
        }
    )


def measure(confidence: float = 0.95) -> Measure:
    return Measure(family_of(TextClassificationTask()), {"labels": LABELS}, "accuracy", confidence, 2_000, 0)


def group(trial: int | None, rights: list[float]) -> Group:
    predictions = tuple(predicted(right, 10 * (trial or 0) + n) for n, right in enumerate(rights))
    return Group(trial, {} if trial is None else {"train.epochs": trial}, 1.0, predictions)


def accuracy(frame: pl.DataFrame) -> float:
    return int((frame["truth"] == frame["prediction"]).sum()) / frame.height


def test_a_finalist_is_the_mean_of_its_seeds_with_what_rows_and_seeds_leave_open() -> None:
    groups = [group(None, [0.80, 0.81, 0.79]), group(1, [0.84, 0.83, 0.85])]
    best, base = measured(groups, measure())
    assert (best.trial, base.trial, base.gain) == (1, None, None)
    values = np.array([[accuracy(frame) for frame in each.predictions] for each in groups])
    assert best.value.value == pytest.approx(values[1].mean())
    assert best.spread == pytest.approx(values[1].std(ddof=1))
    noise = np.sqrt((values.std(axis=1, ddof=1) ** 2).mean() / 3)
    rows = mean_of([measure().of(frame) for frame in groups[1].predictions])
    apart = t.ppf(0.975, 4) * noise  # two groups of three seeds leave four degrees of freedom
    assert best.value.high == pytest.approx(best.value.value + np.hypot(rows.high - rows.value, apart))


def test_the_gain_over_the_recipe_is_paired_by_row_and_seed() -> None:
    groups = [group(None, [0.80, 0.81, 0.79]), group(1, [0.84, 0.83, 0.85])]
    best, _ = measured(groups, measure())
    assert best.gain is not None
    pairs = zip(groups[1].predictions, groups[0].predictions, strict=True)
    assert best.gain.value == pytest.approx(np.mean([accuracy(one) - accuracy(other) for one, other in pairs]))
    assert 0 < best.gain.low < best.gain.value < best.gain.high


def test_the_best_of_many_needs_a_wider_interval_than_the_best_of_one() -> None:
    base, first = group(None, [0.80, 0.81, 0.79]), group(1, [0.84, 0.83, 0.85])
    alone, *_ = measured([base, first], measure())
    others = [group(n, [0.80, 0.81, 0.79]) for n in range(2, 6)]
    among, *_ = measured([base, first, *others], measure())
    assert alone.gain is not None
    assert among.gain is not None
    assert alone.trial == among.trial == 1
    # The rows alone: 99 % where five are compared, 95 % where one is.
    assert measure(0.99).gain(first.predictions[0], base.predictions[0]).low < (
        measure(0.95).gain(first.predictions[0], base.predictions[0]).low
    )
    noise = [np.std([accuracy(f) for f in g.predictions], ddof=1) for g in (base, first, *others)]
    apart = t.ppf(0.995, 12) * np.sqrt(np.mean(np.square(noise)) / 3) * 2**0.5
    assert among.gain.value - among.gain.low > apart


def test_luck_of_the_seeds_is_no_skill() -> None:
    groups = [group(None, [0.80, 0.86, 0.74]), group(1, [0.88, 0.78, 0.83])]
    best, _ = measured(groups, measure())
    assert best.trial == 1
    assert best.gain is not None
    assert best.gain.low < 0 < best.gain.value
    verdict, told = judged([best], "accuracy", rows=ROWS)
    assert verdict == "within"
    assert told.startswith("the recipe as it is stays: trial 1 gains +0.0")
    assert told.endswith("on 2,000 validation rows and 3 seeds, which luck would explain")


def test_of_equals_the_recipe_as_it_is_stays() -> None:
    same = group(None, [0.8, 0.81]).predictions
    first, _ = measured([Group(4, {"train.epochs": 4}, 1.0, same), Group(None, {}, 1.0, same)], measure())
    assert first.trial is None
    assert judged([first], "accuracy", rows=ROWS)[1] == (
        "the recipe as it is stays: no finalist did better on 2,000 validation rows and 2 seeds"
    )


def test_a_sure_gain_is_better() -> None:
    gain = Interval(value=0.02, low=0.004, high=0.036)
    one = Finalist(trial=7, values={}, seeds=3, value=gain, spread=0.0, gain=gain, seconds=1.0)
    verdict, told = judged([one], "macro_f1", rows=500)
    assert verdict == "better"
    assert told == (
        "trial 7 gains +0.0200 (+0.0040 to +0.0360) macro_f1 over the recipe as it is, "
        "on 500 validation rows and 3 seeds"
    )


def test_widening_adds_what_is_independent() -> None:
    found = widened(Interval(value=0.5, low=0.2, high=0.9), 0.4)
    assert (found.value, found.low, found.high) == (0.5, pytest.approx(0.0), pytest.approx(0.5 + 0.32**0.5))


def trial(number: int, state: Any, value: float | None, **values: Any) -> Trial:
    return Trial(
        stage="trial",
        key="k",
        cached=False,
        why="",
        seconds=1.0,
        run_id="r",
        number=number,
        state=state,
        values=values,
        value=value,
        reached=1.0 if state == "complete" else 0.4,
        course={0.4: 0.5, 1.0: value or 0.0},
        steps=10,
        tokens=5,
        told="diverged" if state == "failed" else "",
    )


def test_the_conclusion_is_a_page_with_pictures_and_every_trial(tmp_path: Path) -> None:
    recipe = validate_recipe(
        {
            "name": "tickets", "task": {"family": "text-classification"}, "model": {"base": "/base"},
            "collect": {"source": {"kind": "csv", "path": "/rows.csv"}},
        }
    )  # fmt: skip
    space = {"train.learning_rate": {"low": 1e-5, "high": 1e-3, "log": True}, "train.schedule": ["linear", "cosine"]}
    trials = [
        trial(0, "complete", 0.7),
        *(
            trial(n, "complete", 0.7 + n / 100, **{"train.learning_rate": n * 1e-5, "train.schedule": "cosine"})
            for n in range(1, 12)
        ),
        trial(12, "pruned", 0.5, **{"train.learning_rate": 9e-4, "train.schedule": "linear"}),
        trial(13, "failed", None, **{"train.learning_rate": 1e-3, "train.schedule": "linear"}),
    ]
    values = {"train.learning_rate": 1.1e-4, "train.schedule": "cosine"}
    trainings, folders = [], []
    for number, given, right in ((None, {}, 0.7), (11, values, 0.9)):
        for seed in range(2):
            folder = tmp_path / f"{number}-{seed}"
            folder.mkdir()
            predicted(right, seed).write_parquet(folder / PREDICTIONS)
            folders.append(folder)
            trainings.append({"trial": number, "values": given, "seed": seed, "seconds": 9.0})
    tokens, out = tmp_path / "tokens", tmp_path / "out"
    tokens.mkdir()
    out.mkdir()
    (tokens / "meta.json").write_text(json.dumps({"labels": LABELS}))
    found = draw_conclusion(
        task=TextClassificationTask(), metric="accuracy", confidence=0.95, resamples=500, recipe=recipe, space=space,
        trials=trials, trainings=trainings, tokens=tokens, predictions=folders, out=out,
    )  # fmt: skip
    assert (found["verdict"], found["winner"]) == ("better", values)
    assert found["importance"]["train.learning_rate"] > 0.9, "every complete trial had the same schedule"
    page = (out / "report.md").read_text()
    for picture in ("importance.png", "parallel.png", "trials.png"):
        assert f"]({picture})" in page
        assert (out / picture).stat().st_size > 5_000
    assert "| 12 | given up at 40% | 0.5000 |" in page
    assert "| 13 | failed |  |" in page
    assert "14 trials on a part of the rows: 12 complete, 1 pruned, 1 failed. The test rows played no part." in page
