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


def test_weights_of_4_bits_need_it_too_and_both_are_told_at_once(monkeypatch):
    wanted = Train.model_validate({"optimizer": "adamw-8bit", "method": "qlora"})
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentMistake) as refused:
        train.libraries_of(wanted)
    assert [problem.field for problem in refused.value.problems] == ["train.optimizer", "train.method"]
    assert str(refused.value.problems[1]) == (
        "train.method = 'qlora': bitsandbytes is not installed; "
        "pip install 'hone[bitsandbytes]' on a machine with a CUDA GPU, or choose lora"
    )


def test_an_optimiser_from_elsewhere_is_part_of_the_key(monkeypatch):
    monkeypatch.setattr(train, "find_spec", lambda name: object())
    assert "bitsandbytes" in train.libraries_of(Train(optimizer="adamw-8bit"))
    assert "bitsandbytes" in train.libraries_of(Train.model_validate({"method": "qlora"}))
    assert "bitsandbytes" not in train.libraries_of(Train.model_validate({"optimizer": "muon", "method": "dora"}))
