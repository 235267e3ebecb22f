from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import polars as pl
import pytest
from scipy.stats import norm, t

from schemas.curve import Forecast
from schemas.records import Interval
from tasks.curve import PREDICTIONS, covariance, draw_curve, judged
from tasks.families.text_classification import TextClassificationTask

LABELS = ["bad", "good"]
ROWS = 1_000


def predictions(folder: Path, right: float, seed: int = 0) -> Path:
    """Predictions of the validation rows, so many of them right; the hardest rows are the same for every model."""
    rng = np.random.default_rng(5)
    truth, ease = rng.integers(0, 2, ROWS), rng.random(ROWS)
    wrong = ease + 0.1 * np.random.default_rng(seed).standard_normal(ROWS) > right
    folder.mkdir(parents=True)
    pl.DataFrame(
        {
            "id": [f"v{i}" for i in range(ROWS)],
            "truth": [LABELS[i] for i in truth],
            "prediction": [LABELS[i] for i in truth ^ wrong],
        }
    ).write_parquet(folder / PREDICTIONS)
    return folder


def draw(folder: Path, models: list[tuple[float, int, float]], **changes: Any) -> tuple[dict[str, Any], Path]:
    """The curve of models given as share, seed and share of right predictions."""
    tokens, out = folder / "tokens", folder / "out"
    for made in (tokens, out):
        made.mkdir(parents=True)
    (tokens / "meta.json").write_text(json.dumps({"labels": LABELS}))
    found = draw_curve(
        **{
            "task": TextClassificationTask(), "metric": "accuracy", "confidence": 0.95, "resamples": 1_000,
            "margin": 0.01, "models": [{"share": s, "rows": round(10_000 * s), "steps": 200} for s, _, _ in models],
            "tokens": tokens, "out": out,
            "predictions": [predictions(folder / f"{s}-{n}", right, seed=n + round(99 * s)) for s, n, right in models],
        }
        | changes
    )  # fmt: skip
    return found, out


RISING = [(0.05, 0, 0.5), (0.1, 0, 0.6), (0.25, 0, 0.7), (0.5, 0, 0.77), (1.0, 0, 0.82)]


def test_a_point_is_the_metric_with_its_interval_over_the_validation_rows(tmp_path: Path) -> None:
    found, _ = draw(tmp_path, RISING[:2])
    frame = pl.read_parquet(tmp_path / "0.1-0" / PREDICTIONS)
    right = int((frame["truth"] == frame["prediction"]).sum()) / ROWS
    point = found["points"][1]
    assert {name: point[name] for name in ("share", "rows", "steps", "seeds")} == {
        "share": 0.1, "rows": 1_000, "steps": 200, "seeds": 1,
    }  # fmt: skip
    assert point["value"]["value"] == pytest.approx(right)
    error = (right * (1 - right) / ROWS) ** 0.5
    assert point["value"]["high"] - point["value"]["low"] == pytest.approx(2 * norm.ppf(0.975) * error, rel=0.1)


def test_too_few_points_foretell_nothing_and_say_what_to_do(tmp_path: Path) -> None:
    found, out = draw(tmp_path, RISING[:3])
    assert (found["forecasts"], found["verdict"], found["law"]) == ([], "undecided", None)
    assert found["told"] == "fewer than 4 points cannot tell what more rows would add: ask for more --shares"
    assert "would add |" not in (out / "report.md").read_text()
    assert (out / "curve.png").exists()


def test_a_curve_that_rises_is_said_to(tmp_path: Path) -> None:
    found, out = draw(tmp_path, RISING)
    assert found["verdict"] == "rises"
    twice, four = found["forecasts"]
    assert (twice["factor"], twice["rows"], four["rows"]) == (2, 20_000, 40_000)
    assert 0 < twice["gain"]["low"] < twice["gain"]["value"] < twice["gain"]["high"] < 0.1
    assert twice["gain"]["value"] < four["gain"]["value"]
    assert found["told"].startswith("20,000 rows, 2 times as many, would add +0.0")
    page = (out / "report.md").read_text()
    assert "| 0.25 | 2,500 | 200 | 1 |" in page
    assert "![The metric against the number of training rows](curve.png)" in page
    assert "On 1,000 validation rows; the test rows play no part." in page
    assert matplotlib.image.imread(out / "curve.png").shape[1] > 700


def test_a_flat_curve_is_said_to_be_flat(tmp_path: Path) -> None:
    found, _ = draw(tmp_path, [(share, 0, 0.8) for share, _, _ in RISING], margin=0.03)
    assert found["verdict"] == "flat"


def test_several_seeds_are_one_point_whose_interval_has_what_they_differ_by(tmp_path: Path) -> None:
    apart = [(share, seed, right + 0.04 * (seed - 1)) for share, _, right in RISING for seed in range(3)]
    found, _ = draw(tmp_path / "three", apart)
    alone, _ = draw(tmp_path / "one", [model for model in apart if model[1] == 1])
    for several, one in zip(found["points"], alone["points"], strict=True):
        assert (several["seeds"], one["seeds"]) == (3, 1)
        widths = [point["value"]["high"] - point["value"]["low"] for point in (several, one)]
        assert widths[0] > widths[1] + 0.5 * t.ppf(0.975, 10) * 0.04 / 3**0.5


def test_the_covariance_is_that_of_metrics_on_the_same_rows() -> None:
    rng = np.random.default_rng(0)
    wanted = np.array([[4.0, 3.0, 1.0], [3.0, 9.0, 2.0], [1.0, 2.0, 5.0]])
    errors = np.sqrt(np.diag(wanted))
    differences = {
        (i, j): float(np.sqrt(wanted[i, i] + wanted[j, j] - 2 * wanted[i, j])) for j in range(3) for i in range(j)
    }
    assert covariance(errors, differences) == pytest.approx(wanted)
    noisy = {pair: error * rng.uniform(0.2, 1.0) for pair, error in differences.items()}
    assert np.linalg.eigvalsh(covariance(errors, noisy)).min() > 0


def forecast(value: float, low: float, high: float) -> Forecast:
    return Forecast(factor=2, rows=52_400, gain=Interval(value=value, low=low, high=high))


@pytest.mark.parametrize(
    ("gain", "verdict", "end"),
    [
        ((0.012, 0.004, 0.021), "rises", "the curve still rises, more rows are worth their labels"),
        ((0.003, 0.001, 0.006), "flat", "the curve is flat, look for better rows or another model"),
        ((0.012, -0.004, 0.021), "undecided", "the points cannot tell, more --seeds or validation rows might"),
    ],
)
def test_what_more_rows_would_add_is_a_sentence(gain: tuple[float, float, float], verdict: str, end: str) -> None:
    word, told = judged([forecast(*gain)], "macro_f1", 0.01)
    assert word == verdict
    value, low, high = gain
    added = f"52,400 rows, 2 times as many, would add {value:+.3f} ({low:+.3f} to {high:+.3f}) macro_f1"
    assert told == f"{added}: {end}"
