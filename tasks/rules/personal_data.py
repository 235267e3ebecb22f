"""Personal data in texts, replaced by placeholders: email, phone, card, ip, and what other packages register.

The patterns here look at the form alone and leave versions, dates, times, prices and plain long numbers. They see no
names and no addresses. Travels with every model, so it imports nothing of ours but its neighbour.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from .text import apply_where

if TYPE_CHECKING:
    import polars as pl

GROUP = "hone.redactors"
"""Entry points of functions from text to text."""

EMAIL = re.compile(r"(?<![\w.+%'-])[\w.+%'-]+@(?:[^\W_](?:[\w-]*[^\W_])?\.)+[^\W\d_]{2,24}(?![\w-])")
PHONE = re.compile(
    r"""(?<![\w.,+/=\#@-])(?:
      \+\d{1,3}[ ./()-]{0,3}(?:\d[ ./()-]{0,3}){5,13}\d                                # +49 (0)30 123456
    | (?:1[-. ])?(?:\([2-9]\d\d\)[ -]?|[2-9]\d\d(?P<nanp>[-. ]))\d{3}(?(nanp)(?P=nanp)|[-. ])\d{4}    # (555) 123-4567
    | (?:\(0\d{1,5}\)|0\d{1,5})[ ./-]{1,2}\d{2,8}(?:(?P<gap>[ .-])\d{2,8}(?:(?P=gap)\d{2,8})*)?       # 030/1234567
    )(?![\w@]|[.,:/-]\d)""",
    re.VERBOSE,
)
LABELLED_PHONE = re.compile(r"(?i)\b((?:tel|telephone|phone|mobile|fax|whatsapp)[ .:#]{1,3})\d{7,15}(?!\d)")
CARD = re.compile(
    r"(?<![\w.+/=#-])(?:\d{13,19}|\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{4,5})(?!\w|[.,-]\d)"
)
ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(?:0[0-5]|[68]\d)\d{11}"  # Diners Club
    r"|(?:6011|65\d\d|64[4-9]\d)\d{12}"  # Discover
    r"|35(?:2[89]|[3-8]\d)\d{12}"  # JCB
    r"|62\d{14}(?:\d{3})?"  # UnionPay
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{8,15}"  # Maestro
)
IPV4 = re.compile(r"(?<![\w.-])\d{1,3}(?:\.\d{1,3}){3}(?![\w-]|\.\d)")
IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{3,39}(?:(?<=:)\d{1,3}(?:\.\d{1,3}){3})?(?![\w]|\.\d)")
NAMES_A_VERSION = re.compile(r"(?i)\b(?:v|ver|versions?|release|build|firmware|update)[.:]?\s*$")


@dataclass(frozen=True)
class Redactor:
    """One kind of personal data.

    Attributes:
        hint: Pattern (of Rust's regex) that every text with such data matches; none: every text is looked at.
        replace: The text with placeholders.
        module: Where its code is.
    """

    hint: str | None
    replace: Callable[[str], str]
    module: str = __name__


def redact(texts: pl.Series, redactor: Redactor) -> pl.Series:
    """The texts with placeholders for this kind of personal data; nulls stay."""
    may_hold = texts.is_not_null() if redactor.hint is None else texts.str.contains(redactor.hint)
    return apply_where(texts, may_hold, redactor.replace)


def registered() -> dict[str, EntryPoint]:
    """Name → entry point of every redactor that an installed package brings."""
    return {point.name: point for point in entry_points(group=GROUP)}


@cache
def redactor_of(name: str) -> Redactor:
    """The redactor of this name.

    Raises:
        LookupError: There is none.
        ImportError: The package that registered it does not import.
        AttributeError: That package has no such function.
    """
    if name in BUILT_IN:
        return BUILT_IN[name]
    point = registered().get(name)
    if point is None:
        raise LookupError(f"no redactor {name!r}: install the package that registers it under {GROUP}")
    return Redactor(None, point.load(), point.module)


def emails(text: str) -> str:
    """`kim@example.com` → `<EMAIL>`; mentions and versions (`@kim`, `lodash@4.17`) stay."""
    return EMAIL.sub("<EMAIL>", text)


def phones(text: str) -> str:
    """Numbers written as telephone numbers → `<PHONE>`: international, North American, or with a leading zero."""

    def judged(match: re.Match[str]) -> str:
        digits = sum(character.isdigit() for character in match[0])
        fewest, most = (8, 15) if match[0][0] == "+" else (9, 14)
        return "<PHONE>" if fewest <= digits <= most else match[0]

    return LABELLED_PHONE.sub(r"\1<PHONE>", PHONE.sub(judged, text))


def cards(text: str) -> str:
    """Payment card numbers → `<CARD>`: an issuer's digits, of its length, with a right check digit."""

    def judged(match: re.Match[str]) -> str:
        digits = re.sub(r"\D", "", match[0])
        return "<CARD>" if ISSUERS.fullmatch(digits) and passes_luhn(digits) else match[0]

    return CARD.sub(judged, text)


def passes_luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1)."""
    doubled = [sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(int(digit) for digit in digits[::-2])) % 10 == 0


def ips(text: str) -> str:
    """IPv4 and IPv6 addresses → `<IP>`.

    Four numbers are a version when a word before them says so, or when all of them have one digit.
    """

    def judged_v4(match: re.Match[str]) -> str:
        short = len(match[0]) == len("1.2.3.4")
        if (
            short
            or not _is_address(match[0])
            or NAMES_A_VERSION.search(text[max(0, match.start() - 12) : match.start()])
        ):
            return match[0]
        return "<IP>"

    def judged_v6(match: re.Match[str]) -> str:
        found = match[0]
        bare = found[:-1] if found.endswith(":") and not found.endswith("::") else found
        return "<IP>" + found[len(bare) :] if _is_personal_v6(bare) else found

    # IPv6 first: an address may end in an IPv4 one.
    text = IPV6.sub(judged_v6, text)
    return IPV4.sub(judged_v4, text)


def _is_personal_v6(found: str) -> bool:
    """`std::add`, `::1` and `12:30:45` have colons too: an address has a full first group, or three of them."""
    groups = [group for group in found.split(":") if group]
    full_first = len(groups) > 1 and len(groups[0]) == 4 and any(character.isdigit() for character in groups[0])
    return (full_first or len(groups) >= 3) and any(c.isdigit() for c in found) and _is_address(found)


def _is_address(found: str) -> bool:
    try:
        ipaddress.ip_address(found)
    except ValueError:
        return False
    return True


BUILT_IN = {
    "email": Redactor(r"\w@\w", emails),
    "phone": Redactor(r"(?:\d[\s().:#/-]{0,3}){7}", phones),
    "card": Redactor(r"(?:\d[ -]?){13}", cards),
    "ip": Redactor(r"\d\.\d{1,3}\.\d|[0-9A-Fa-f:]:[0-9A-Fa-f]*:", ips),
}
