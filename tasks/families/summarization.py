"""Summarization: a text is told in fewer words.

References:
    C.-Y. Lin (2004), ROUGE: A Package for Automatic Evaluation of Summaries.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Literal

from tasks.families.rewriting import Rewriting, RewritingTask

if TYPE_CHECKING:
    import polars as pl

SENTENCE = re.compile(r".*?(?:[.!?](?=\s|$)|[\u3002\uff01\uff1f])", re.DOTALL)
"""The first one of a text."""


class SummarizationTask(RewritingTask):
    """A text is told in fewer words."""

    family: Literal["summarization"] = "summarization"
    instruction: str = "Summarize in one sentence."
    """What a decoder-only model is asked, above the text."""


class Summarization(Rewriting):
    """See `tasks.families.Family`."""

    section = SummarizationTask

    def guesses(self, rows: pl.DataFrame) -> dict[str, list[str]]:
        """The first sentence."""
        return {"lead": [first_sentence(text) for text in rows["text"]]}


def first_sentence(text: str) -> str:
    """Up to the first mark that ends one; all of it where there is none."""
    found = SENTENCE.match(text.strip())
    return " ".join((found[0] if found else text).split())
