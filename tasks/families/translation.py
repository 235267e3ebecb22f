"""Machine translation: a text in one language is written in another.

References:
    I. Sutskever et al. (2014), Sequence to Sequence Learning with Neural Networks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import model_validator

from tasks.families.rewriting import Rewriting, RewritingTask

if TYPE_CHECKING:
    import polars as pl


class TranslationTask(RewritingTask):
    """A text is written in another language."""

    metrics: ClassVar[tuple[str, ...]] = ("chrf", "bleu", "rouge_l", "exact_match", "likelihood")
    family: Literal["translation"] = "translation"
    source_language: str = "English"
    """What the text is written in, as an instruction names it."""
    target_language: str
    """What it is to be written in, as an instruction names it."""

    @model_validator(mode="before")
    @classmethod
    def _asked_for(cls, data: Any) -> Any:
        if not isinstance(data, dict) or data.get("instruction") or not data.get("target_language"):
            return data
        source = data.get("source_language", "English")
        return {**data, "instruction": f"Translate from {source} to {data['target_language']}."}


class Translation(Rewriting):
    """See `tasks.families.Family`."""

    section = TranslationTask
    row_score = "mean chrF"

    def guesses(self, rows: pl.DataFrame) -> dict[str, list[str]]:
        """The text as it is."""
        return {"copy": rows["text"].to_list()}
