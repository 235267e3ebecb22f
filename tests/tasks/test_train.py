from __future__ import annotations

import pytest

from schemas.errors import EnvironmentMistake
from schemas.recipe import Train
from tasks import train


def test_an_optimiser_that_is_not_installed_is_one_line_that_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentMistake) as refused:
        train.libraries_of(Train(optimizer="adamw-8bit"))
    assert str(refused.value) == (
        "train.optimizer = 'adamw-8bit': bitsandbytes is not installed; "
        "pip install 'hone[bitsandbytes]', or choose adafactor"
    )


def test_an_optimiser_from_elsewhere_is_part_of_the_key(monkeypatch):
    monkeypatch.setattr(train, "find_spec", lambda name: object())
    assert "bitsandbytes" in train.libraries_of(Train(optimizer="adamw-8bit"))
    assert "bitsandbytes" not in train.libraries_of(Train(optimizer="muon"))
