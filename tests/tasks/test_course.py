from __future__ import annotations

import pytest

from schemas.recipe import Train
from tasks.course import EVALUATIONS, LEAST_STEPS, course, prolonged


def test_many_rows_are_passed_twice_and_looked_at_twice_a_pass() -> None:
    found = course(Train(), 26_200)
    assert (found.steps, found.steps_per_epoch, found.eval_steps) == (820, 410, 205)
    assert found.reason == "2 epochs"


def test_few_rows_are_passed_more_often_and_looked_at_a_few_times() -> None:
    found = course(Train(), 256)
    assert (found.steps, found.steps_per_epoch) == (LEAST_STEPS, 4)
    assert found.steps / found.eval_steps == EVALUATIONS
    assert found.reason == f"at least {LEAST_STEPS}: 2 epochs of 256 rows would be 8"


@pytest.mark.parametrize(("more", "steps"), [(0, LEAST_STEPS), (1, LEAST_STEPS + 2)])
def test_there_is_no_gap_where_the_rule_ends(more: int, steps: int) -> None:
    rows = 64 * LEAST_STEPS // 2 + more
    assert course(Train(), rows).steps == steps
    assert course(Train(), rows).reason == "2 epochs"


@pytest.mark.parametrize("rows", [64, 256, 26_200])
def test_a_recipe_that_names_its_epochs_or_steps_keeps_them(rows: int) -> None:
    per_epoch = -(-rows // 64)
    named = course(Train(epochs=2), rows)
    assert (named.steps, named.eval_steps) == (2 * per_epoch, max(1, -(-per_epoch // 2)))
    assert course(Train(max_steps=7), rows).steps == 7
    assert course(Train(eval_steps=3), rows).eval_steps == 3


def test_a_part_of_the_rows_has_as_many_epochs_but_enough_steps() -> None:
    most = course(Train(epochs=2), 26_200).steps
    assert prolonged(Train(epochs=2), 13_100, most) == Train(epochs=2)
    short = prolonged(Train(epochs=2), 1_310, most)
    assert (short.epochs, short.max_steps, short.eval_steps) == (2, LEAST_STEPS, LEAST_STEPS // EVALUATIONS)


def test_a_part_has_no_more_steps_than_the_whole_for_being_small() -> None:
    most = course(Train(epochs=2), 640).steps
    assert course(prolonged(Train(epochs=2), 64, most), 64).steps == most == 20


def test_a_recipe_that_names_its_steps_gives_them_to_every_part() -> None:
    assert prolonged(Train(max_steps=50), 64, 50) == Train(max_steps=50)
    assert prolonged(Train(), 64, 820) == Train()
