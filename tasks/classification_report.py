"""What only the report of a single-label classifier has: its calibration, and what it took for what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tasks import classification
from tasks.markdown import plain, table

if TYPE_CHECKING:
    import polars as pl

WIDEST_TABLE = 12
"""Labels up to which the report shows the whole confusion matrix; with more, the most frequent confusions."""
MOST_CONFUSIONS = 20


def calibration_told(fitted: Mapping[str, Any], abstention: Mapping[str, Any]) -> list[str]:
    """Sentences on the temperature and on abstaining.

    Args:
        fitted: See `tasks.calibration.fit`.
        abstention: See `tasks.calibration.abstention`.
    """
    if not fitted:
        return []
    lines = [
        f"Temperature {fitted['temperature']:.3f}, fitted on validation: there it took the expected calibration error "
        f"from {fitted['before']['ece']:.4f} to {fitted['after']['ece']:.4f} and the log loss from "
        f"{fitted['before']['log_loss']:.4f} to {fitted['after']['log_loss']:.4f}. All test measures are of calibrated "
        "probabilities."
    ]
    wanted = fitted.get("abstain")
    if wanted and wanted["threshold"] is None:
        lines.append(
            f"No threshold reached a precision of {wanted['precision']:.0%} on validation: it always abstains."
        )
    elif wanted:
        right = abstention["precision"]
        told = f", and is right on {right['value']:.1%} of these" if right else ""
        lines.append(
            f"Below a probability of {wanted['threshold']:.3f} the model abstains, for a precision of "
            f"{wanted['precision']:.0%}: on the test rows it answers {abstention['coverage']:.1%}{told}."
        )
    return lines


def confusion_section(predictions: pl.DataFrame, labels: Sequence[str]) -> list[str]:
    """What was taken for what: the whole matrix, or the most frequent confusions.

    Args:
        predictions: Columns truth and prediction.
        labels: All labels.
    """
    # A registered model may have answered with labels that today's rows do not have, or with none.
    answers = [*labels, *sorted(set(predictions["prediction"]) - set(labels))]
    heads = [plain(answer) or "(no answer)" for answer in answers]
    counts = classification.confusion(predictions, answers)[: len(labels)].tolist()
    if len(answers) <= WIDEST_TABLE:
        rows = [
            (plain(label), *(f"**{n:,}**" if i == j else f"{n:,}" for j, n in enumerate(row)))
            for i, (label, row) in enumerate(zip(labels, counts, strict=True))
        ]
        return ["## Confusion", table(("true ╲ predicted", *heads), rows)]
    confused = [
        (count, truth, head)
        for truth, row in zip(labels, counts, strict=True)
        for predicted, head, count in zip(answers, heads, row, strict=True)
        if count and truth != predicted
    ]
    most = sorted(confused, key=lambda cell: -cell[0])[:MOST_CONFUSIONS]
    rows = [(plain(truth), head, f"{count:,}") for count, truth, head in most]
    return ["## Most frequent confusions", table(("true", "predicted", "rows"), rows)]
