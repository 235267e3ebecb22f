from __future__ import annotations

import pytest

from schemas.errors import RecipeError
from schemas.recipe import Train
from tasks.plan import decay_steps, make_plan, warmup_steps


@pytest.mark.parametrize(
    ("train", "steps", "expected"),
    [
        ({}, 100, 6),
        ({}, 1, 0),
        ({"warmup_ratio": 0.0}, 100, 0),
        ({"warmup_ratio": 0.255}, 10, 3),
        ({"warmup_ratio": 0.95}, 10, 9),
        ({"warmup_steps": 0}, 100, 0),
        ({"warmup_steps": 99}, 100, 99),
    ],
)
def test_the_warm_up_is_a_number_of_steps_or_a_share_and_leaves_one_for_the_peak(train, steps, expected):
    assert warmup_steps(Train(**train), steps) == expected


def test_a_warm_up_longer_than_the_training_is_refused():
    with pytest.raises(RecipeError, match=r"train\.warmup_steps = 100: training has 100 steps; lower it"):
        warmup_steps(Train(warmup_steps=100), 100)


def test_the_decay_begins_after_the_warm_up():
    train = Train(schedule="warmup-stable-decay", warmup_ratio=0.5, decay_ratio=0.5)
    assert decay_steps(train, 10, 5) == 5
    assert decay_steps(train, 11, 11 - warmup_steps(train, 11)) == 5  # both shares are rounded up
    assert decay_steps(Train(), 10, 5) == 0


def test_the_plan_says_by_what_is_optimised_and_for_how_long_it_warms_up():
    plan = make_plan(
        Train(optimizer="muon", epochs=2, warmup_steps=7, global_batch_size=10),
        dropout=None, rows=95, longest=20, class_weights=None, class_weights_reason="none",
    )  # fmt: skip
    assert (plan.optimizer, plan.steps, plan.warmup_steps) == ("muon", 20, 7)


def test_the_plan_says_why_few_rows_are_passed_so_often():
    rows = {"dropout": None, "rows": 95, "longest": 20, "class_weights": None, "class_weights_reason": "none"}
    plan = make_plan(Train(global_batch_size=10), **rows)
    assert (plan.steps, plan.steps_per_epoch, plan.eval_steps, plan.warmup_steps) == (100, 10, 20, 6)
    assert plan.reasons["steps"] == "at least 100: 2 epochs of 95 rows would be 20"
    assert make_plan(Train(global_batch_size=10, epochs=2), **rows).reasons["steps"] == "the recipe says so"
