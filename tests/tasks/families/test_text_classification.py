from __future__ import annotations

from typing import Any

import polars as pl
import pytest
import torch

from tasks.families import Loss
from tasks.families.text_classification import TextClassification

META = {"labels": ["bad", "good"]}


def differences(label: str | None, good: float | None) -> list[tuple[str, str]]:
    """Between what is served of a row and the tie that was recorded."""
    row = pl.DataFrame({"id": ["r"], "prediction": ["bad"], "probabilities": [[0.50001, 0.49999]]})
    served: list[dict[str, Any]] = [
        {"label": label, "probabilities": None if good is None else {"bad": 1 - good, "good": good}, "abstains": None}
    ]
    return TextClassification().disagreements(served, row, META)


def test_a_tie_may_fall_either_way_but_a_difference_may_not() -> None:
    assert differences("bad", 0.49999) == []
    assert differences("good", 0.50001) == []
    assert differences("bad", 0.4995) == [("r", "a probability differs by 0.00049")]
    assert differences("bad", float("nan")) != []


def test_every_row_that_is_served_otherwise_is_named() -> None:
    recorded = pl.DataFrame(
        {
            "id": ["a", "b", "c", "d"],
            "prediction": ["bad", "good", "good", "bad"],
            "probabilities": [[0.9, 0.1], [0.2, 0.8], [0.3, 0.7], [0.6, 0.4]],
        }
    )
    served: list[dict[str, Any]] = [
        {"label": "bad", "probabilities": {"bad": 0.90005, "good": 0.09995}},
        {"label": "bad", "probabilities": {"bad": 0.2, "good": 0.8}},
        {"label": None, "probabilities": None},
        {"label": "bad", "probabilities": {"bad": 0.6, "fine": 0.4}},
    ]
    assert TextClassification().disagreements(served, recorded, META) == [
        ("b", "good was recorded, bad is served"),
        ("c", "good was recorded, nothing is served"),
        ("d", "a probability differs by 1.6"),
    ]


def test_as_many_rows_must_be_served_as_were_recorded() -> None:
    with pytest.raises(ValueError, match="shorter"):
        TextClassification().disagreements([], pl.DataFrame({"id": ["a"], "prediction": ["bad"]}), META)


class Fixed(torch.nn.Module):
    """Answers with its own logits, whatever it is asked."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(logits)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Fixed:
        del input_ids, attention_mask
        return self


def loss_of(model: Fixed, labels: list[int], loss: Loss) -> torch.Tensor:
    batch = {"input_ids": torch.zeros(1), "attention_mask": torch.zeros(1), "labels": torch.tensor(labels)}
    family = TextClassification()
    return family.loss_sum(model, batch, loss) / family.loss_count(batch["labels"], loss)


WEIGHTS = torch.tensor([0.5, 2.0, 1.0])


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["unweighted", "weighted"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_torchs_cross_entropy_with_weights_and_smoothing(
    weights: torch.Tensor | None, smoothing: float
) -> None:
    logits, labels = torch.randn(7, 3, generator=torch.Generator().manual_seed(1)), [0, 1, 2, 2, 1, 0, 1]
    expected = torch.nn.functional.cross_entropy(
        logits, torch.tensor(labels), weight=weights, label_smoothing=smoothing
    ).item()
    assert loss_of(Fixed(logits), labels, Loss(weights, smoothing)).item() == pytest.approx(expected, rel=1e-6)
    # A power of the doubt that is next to 0 changes next to nothing.
    assert loss_of(Fixed(logits), labels, Loss(weights, smoothing, 1e-7)).item() == pytest.approx(expected, rel=1e-5)


def test_the_focal_loss_is_the_value_worked_by_hand() -> None:
    logits = torch.tensor([[0.8, 0.1, 0.1], [0.3, 0.5, 0.2]]).log()
    # 0.2^2 * -ln 0.8 = 0.04 * 0.223144 and 0.5^2 * -ln 0.5 = 0.25 * 0.693147
    plain = loss_of(Fixed(logits), [0, 1], Loss(focal_gamma=2.0)).item()
    assert plain == pytest.approx((0.00892574 + 0.17328680) / 2, rel=1e-6)
    weighted = loss_of(Fixed(logits), [0, 1], Loss(WEIGHTS, focal_gamma=2.0)).item()
    assert weighted == pytest.approx((0.5 * 0.00892574 + 2.0 * 0.17328680) / 2.5, rel=1e-6)


def test_the_smoothed_focal_loss_is_the_value_worked_by_hand() -> None:
    logits = torch.tensor([[0.8, 0.2]]).log()
    # 0.9 * 0.2^2 * -ln 0.8 + 0.1 * 0.8^2 * -ln 0.2 = 0.9 * 0.00892574 + 0.1 * 0.64 * 1.609438
    found = loss_of(Fixed(logits), [0], Loss(label_smoothing=0.2, focal_gamma=2.0)).item()
    assert found == pytest.approx(0.9 * 0.00892574 + 0.064 * 1.60943791, rel=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_the_gradient_of_the_focal_loss_is_a_number_where_the_model_has_no_doubt(gamma: float) -> None:
    model = Fixed(torch.tensor([[200.0, 0.0, 0.0]]))
    loss_of(model, [0], Loss(focal_gamma=gamma)).backward()
    assert model.logits.grad is not None
    assert model.logits.grad.isfinite().all()
