from __future__ import annotations

import math

import pytest

from schemas.loading import validate_recipe
from schemas.records import Plan
from tasks import probe
from tasks.learner import train
from tasks.rate_range import BELOW_LOWEST, STEPS, chosen_of, range_test
from tests.learning import job_spec, tiny_encoder, token_files


def valley(lowest: float):
    """Loss of a step at a rate: falls until `lowest`, and rises beyond."""
    return lambda number, rate: 1.0 + 0.1 * (math.log10(rate) - math.log10(lowest)) ** 2


def test_the_rate_rises_evenly_by_its_logarithm_around_the_usual_one() -> None:
    found = range_test(1e-3, lambda number, rate: 1.0)
    assert len(found.rates) == STEPS
    assert (found.rates[0], found.rates[-1]) == (pytest.approx(1e-5), pytest.approx(0.1))
    assert found.rates[1] / found.rates[0] == pytest.approx(found.rates[-1] / found.rates[-2])


def test_no_rate_is_above_one() -> None:
    assert range_test(0.05, lambda number, rate: 1.0).rates[-1] == pytest.approx(1.0)


def test_the_rate_of_the_lowest_loss_by_six_is_chosen() -> None:
    assert chosen_of([1e-5, 1e-4, 1e-3, 1e-2], [1.0, 0.8, 0.5, 0.9]) == float(f"{1e-3 / BELOW_LOWEST:.1e}")
    assert chosen_of([1e-5, 1e-4], [0.5, 0.8]) == 1e-5, "never below what was tried"


def test_the_lowest_loss_is_found_a_little_late_as_an_average_lags() -> None:
    found = range_test(1e-3, valley(1e-3))
    lowest = found.rates[found.losses.index(min(found.losses))]
    assert 1e-3 <= lowest <= 4e-3


@pytest.mark.parametrize("worse", [math.nan, 100.0])
def test_the_test_ends_where_learning_breaks_down(worse: float) -> None:
    found = range_test(1e-3, lambda number, rate: worse if rate > 1e-3 else 1.0 - number / 100)
    assert len(found.rates) < STEPS
    assert found.chosen < 1e-3


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("parts")
    tokens = token_files(folder / "tokens", {"train": 200, "validation": 40, "test": 40})
    return job_spec(tiny_encoder(folder / "base"), tokens)


def test_auto_is_resolved_in_the_plan_with_its_reason_and_trains_with_it(spec, tmp_path) -> None:
    asked = spec | {"train": spec["train"] | {"learning_rate": "auto", "max_steps": 20}}
    logged = []
    plan = probe.plan_training(emit=lambda event, **values: logged.append(values["values"]), **asked)
    again = probe.plan_training(emit=lambda *_, **__: None, **asked)
    assert plan == again, "the same rows on the same machine give the same rate"
    rate = plan["learning_rate"]
    assert logged[0]["range/learning_rate"] < rate < logged[-1]["range/learning_rate"]
    assert plan["reasons"]["learning_rate"].startswith("a range test of ")
    peaks = []

    def heard(event: str, **values) -> None:
        peaks.append(values.get("values", {}).get("learning_rate", 0.0))

    (tmp_path / "work").mkdir()
    train(emit=heard, plan=plan, work=str(tmp_path / "work"), out=str(tmp_path / "out"), save_minutes=9, **asked)
    assert 0.5 * rate < max(peaks) <= rate


def test_a_rate_that_is_said_is_not_tested(spec) -> None:
    plan = Plan.model_validate(probe.plan_training(emit=lambda *_, **__: None, **spec))
    assert plan.learning_rate is None
    assert "learning_rate" not in plan.reasons


def test_auto_is_a_value_of_the_recipe_and_needs_no_number() -> None:
    recipe = validate_recipe(
        {
            "name": "tickets", "task": {"family": "text-classification"}, "model": {"base": "/base"},
            "collect": {"source": {"kind": "csv", "path": "/rows.csv"}}, "train": {"learning_rate": "auto"},
        }
    )  # fmt: skip
    assert recipe.train.learning_rate == "auto"
