"""Numbers, times and texts as people read them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
UNITLESS = ("", "1")
_CODE = re.compile(r"`([^`\n]+)`")
_LONG_WORD = re.compile(r"\S{19,}")  # does not fit beside another on a phone
_JOINT = re.compile(r"(?<=[./_:])(?=\w)")
_SHARE = re.compile(r"(?<=\d) %")


def figure(value: Any, digits: int = 4) -> str:
    """A measured value with so many significant digits; texts stay as they are.

    >>> figure(0.55962), figure(1234567), figure(3.2e-6), figure(float("nan"))
    ('0.5596', '1,234,567', '3.2 × 10⁻⁶', 'NaN')
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "–" if value is None else str(value)
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e9:
        return _minus(f"{int(value):,}")
    size = math.floor(math.log10(abs(value)))
    if -4 <= size < 9:
        return _minus(f"{value:,.{max(0, digits - 1 - size)}f}")
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return _minus(mantissa) + " × 10" + str(int(exponent)).translate(SUPERSCRIPTS)


def _minus(text: str) -> str:
    return text.replace("-", "−")


def figures(values: Sequence[Any]) -> list[str]:
    """Values that are told side by side: with so many digits that unequal ones look unequal."""
    unequal = len({repr(value) for value in values})
    for digits in range(4, 10):
        texts = [figure(value, digits) for value in values]
        if len(set(texts)) >= unequal:
            break
    return texts


def with_unit(value: Any, unit: str) -> str:
    return figure(value) if unit in UNITLESS else f"{figure(value)} {unit}"


def count(number: float, noun: str, plural: str = "") -> str:
    """`1 step`, `2,000 steps`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def span(seconds: float) -> str:
    """How long something took: `0.8 s`, `3 min 20 s`, `2 h 5 min`, `4 d 1 h`."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    parts = []
    left = round(seconds)
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        number, left = divmod(left, size)
        if number:
            parts.append(f"{number} {unit}")
    return " ".join(parts[:2])


def ago(then: float, now: float) -> str:
    """Rough age: `just now`, `5 min ago`, `3 d ago`."""
    age = now - then
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if age >= size:
            return f"{int(age // size)} {unit} ago"
    return "just now" if age < 10 else f"{int(age)} s ago"


def moment(then: float) -> str:
    """`2026-11-20 14:03:05 UTC`"""
    return datetime.fromtimestamp(then, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(then: float) -> str:
    """As `<time datetime>` wants it."""
    return datetime.fromtimestamp(then, UTC).isoformat(timespec="seconds")


def percent(share: Any) -> str:
    """`100 %`, `44.3 %`; never rounded to a full or an empty share that it is not."""
    if not isinstance(share, (int, float)) or isinstance(share, bool) or math.isnan(share):
        return "–"
    text = f"{100 * share:.1f}".removesuffix(".0")
    if text == "100" and share < 1:
        return "> 99.9 %"
    if text == "0" and share > 0:
        return "< 0.1 %"
    return f"{text} %"


def prose(text: str) -> Markup:
    """A rule's sentence; what it put into backticks is code, all else is text."""
    pieces = _CODE.split(_SHARE.sub("\u00a0%", text))
    return Markup("").join(
        Markup("<code>{}</code>").format(breakable(piece)) if i % 2 else breakable(piece)
        for i, piece in enumerate(pieces)
    )


def breakable(text: str) -> Markup:
    """Long names may go on in the next line behind a dot, slash, colon or underscore."""
    parted = _LONG_WORD.sub(lambda word: _JOINT.sub("\0", word[0]), text.replace("\0", ""))
    return Markup("<wbr>").join(escape(piece) for piece in parted.split("\0"))
