"""Rules that put a text right. Each takes a series of texts and gives one; nulls stay.

Python runs only on the texts for which a pattern says that it may be needed; the others pass as they are.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import polars as pl

MAY_NEED_REPAIR = r"[^\t\n -~]|&#?[0-9A-Za-z]{1,24};"
"""Text without a match is returned by ftfy as it is: ASCII that prints, with nothing shaped like an entity."""
INVISIBLE = re.compile(
    "[\u0080-\u0084\u0086-\u009f\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]"
)
"""Second set of control characters, soft hyphens, zero-width spaces, marks of direction.

Joiners (U+200C, U+200D) stay: scripts and emoji need them.
"""
BLOCKS = (
    "address|article|aside|blockquote|body|br|center|dd|details|dialog|div|dl|dt|fieldset|figcaption|figure|footer|"
    "form|frame|frameset|h[1-6]|head|header|hr|html|legend|li|link|main|meta|nav|noscript|ol|optgroup|option|p|pre|"
    "section|select|summary|table|tbody|td|textarea|tfoot|th|thead|title|tr|ul"
)
"""Elements that stand between words; the others may stand within one."""
INLINES = (
    "a|abbr|acronym|area|audio|b|base|bdi|bdo|big|button|canvas|caption|cite|code|col|colgroup|data|datalist|del|dfn|"
    "em|embed|font|i|iframe|img|input|ins|kbd|label|map|mark|math|meter|nobr|object|output|param|path|picture|"
    "progress|q|rp|rt|ruby|s|samp|script|slot|small|source|span|strike|strong|style|sub|sup|svg|template|time|track|"
    "tt|u|var|video|wbr|[a-z]+:[a-z]+"
)
ATTRIBUTES = (
    r"(?:\s+(?:[a-z_:@][\w:.@-]*\s*=\s*(?:\"[^\"]*\"|'[^']*'|[^\s\"'<>=]+)"
    r"|async|autofocus|autoplay|checked|controls|defer|disabled|hidden|loop|multiple|muted|noshade|nowrap|open"
    r"|readonly|required|reversed|selected))*"
)
"""A word without a value is an attribute only when HTML has one of this name: `a <b and c> d` is no markup."""
UNSHOWN = (
    r"(?is)<!--.*?-->|<!doctype\b[^>]*>|<\?xml\b[^>]*>|<script\b[^<>]*>.*?</script\s*>|<style\b[^<>]*>.*?</style\s*>"
)
CDATA = r"(?s)<!\[CDATA\[(.*?)\]\]>"
UNEVEN = r"\s\s|[^\S ]|^\s|\s$"
"""White space that is no single space between words."""
BLOCK_TAG = rf"(?i)</?(?:{BLOCKS}){ATTRIBUTES}\s*/?>"
INLINE_TAG = rf"(?i)</?(?:{INLINES}){ATTRIBUTES}\s*/?>"


def strip_markup(texts: pl.Series) -> pl.Series:
    """Texts without HTML tags, comments, scripts and styles; what stood between the tags stays, entities resolved.

    Only what HTML knows is a tag: `a < b`, `<3` and `<user>` stay.
    """
    bare = (
        texts.str.replace_all(UNSHOWN, " ")
        .str.replace_all(CDATA, "${1}")
        .str.replace_all(BLOCK_TAG, "\n")
        .str.replace_all(INLINE_TAG, "")
    )
    # Entities are part of the markup, and ftfy leaves them alone in a text that still has a "<".
    return apply_where(bare, bare.ne_missing(texts) & bare.str.contains("&", literal=True), html.unescape)


def fix_text(texts: pl.Series, form: Literal["NFC", "NFKC"] = "NFC") -> pl.Series:
    """Each text as it was meant: see `ftfy.fix_text`; nothing invisible in it, in one Unicode form."""
    import ftfy

    config = ftfy.TextFixerConfig(explain=False)

    def fix(text: str) -> str:
        return unicodedata.normalize(form, INVISIBLE.sub("", ftfy.fix_text(text, config)))

    return apply_where(texts, texts.str.contains(MAY_NEED_REPAIR), fix)


def collapse_whitespace(texts: pl.Series) -> pl.Series:
    """Every run of Unicode white space as one space, none at the ends."""
    uneven = texts.str.contains(UNEVEN).fill_null(value=False)  # looking for it costs a fifth of doing it
    if not uneven.any():
        return texts
    return texts.clone().scatter(uneven.arg_true(), texts.filter(uneven).str.replace_all(r"\s+", " ").str.strip_chars())


def apply_where(texts: pl.Series, where: pl.Series, function: Callable[[str], str]) -> pl.Series:
    """The texts with `function` applied to those where the mask is true."""
    import polars as pl

    where = where.fill_null(value=False)
    if not where.any():
        return texts
    changed = pl.Series([function(text) for text in texts.filter(where)], dtype=pl.String)
    return texts.clone().scatter(where.arg_true(), changed)
