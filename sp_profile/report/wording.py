"""Numbers and signs as the report writes them."""

from __future__ import annotations

import math

NOTHING, MINUS, TIMES, MORE = "\u2013", "\u2212", "\u00d7", "\u2026"
PLUS_MINUS, STAR, WORSE, BETTER = "\u00b1", "\u2605", "\u25bc", "\u25b2"


def percent(share: float) -> str:
    """Such as 90 % or 12.5 %."""
    return f"{100 * share:.3g} %"


def plural(count: int, noun: str) -> str:
    """Such as 1 cluster, 2 clusters."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def number(value: float | None, digits: int = 3) -> str:
    """A decimal, or a dash for what was not measured (None, NaN, the tables' -1)."""
    if value is None or math.isnan(value) or value == -1:
        return NOTHING
    return f"{value:.{digits}f}"


def signed(value: float, digits: int = 1) -> str:
    """With its sign, a real minus, and no sign at zero."""
    text = f"{value:+.{digits}f}"
    if not float(text):
        return text.lstrip("+-")
    return text.replace("-", MINUS)
