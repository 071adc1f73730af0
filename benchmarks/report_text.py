"""Markdown of figures with intervals, as the report scripts write it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sp_profile.eval.statistics import Estimate


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def percent(estimate: Estimate | None) -> str:
    """A difference of scores in points, with its interval."""
    if estimate is None:
        return "-"
    mean, low, high = (100 * value for value in (estimate.mean, estimate.low, estimate.high))
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def interval(estimate: Estimate | None, digits: int = 3) -> str:
    """A figure with its interval."""
    if estimate is None:
        return "-"
    mean, low, high = (f"{x:.{digits}f}" for x in (estimate.mean, estimate.low, estimate.high))
    return f"{mean} [{low}, {high}]"


def number(value: float | None, digits: int = 3) -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None or value != value else f"{value:.{digits}f}"


def verdict(value: float | None, must: float, goal: float, *, less: bool) -> str:
    """Which of two bounds a figure meets."""
    if value is None or value != value:
        return "not measured"
    sign = 1 if less else -1
    if sign * value <= sign * goal:
        return "goal met"
    return "must met" if sign * value <= sign * must else "missed"
