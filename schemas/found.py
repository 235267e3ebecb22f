"""What a search and a comparison end with alike: a recipe, and what became of it."""

from __future__ import annotations

from typing import Any

from schemas.records import Record


class FoundRecipe(Record):
    """A recipe that was found on validation rows.

    Attributes:
        recipe: Name of the recipe that it began with.
        share: Of the training rows, that was learnt from to find it.
        told: What was found, in a sentence.
        changes: Field → value before and after; empty where the recipe stays as it is.
        recipe_yaml: The recipe that was found, with a comment on each changed field.
        ran: What the pipeline made of it, where that was asked for.
    """

    recipe: str
    flow_run_id: str
    mlflow_run_id: str
    mlflow_url: str | None
    metric: str
    validation_rows: int
    share: float
    told: str
    changes: dict[str, tuple[Any, Any]]
    recipe_yaml: str
    ran: dict[str, Any] | None = None
    seconds: float
