"""Recall against cost: means above, tenth percentiles below, a column a length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sp_profile.figures.palette import series_style
from sp_profile.figures.style import drawing, encode, legend_below, new_figure, open_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sp_profile.curves import CurvePoint, Curves

_ROWS: tuple[tuple[str, Callable[[CurvePoint], float]], ...] = (
    ("recall, mean", lambda point: point.recall),
    ("recall, tenth percentile", lambda point: point.recall_p10),
)


def draw_curves(curves: Curves) -> bytes:
    """A PNG. Raises UsageError without matplotlib."""
    with drawing():
        return encode(curves_figure(curves), "png")


def curves_figure(curves: Curves) -> Figure:
    """Every method that was measured, in a colour and a marker of its own.

    A line joins settings of which the dearer always keeps more; others are single points.
    """
    from matplotlib.lines import Line2D

    lengths = sorted({point.length for point in curves.points})
    methods = list(dict.fromkeys(point.method for point in curves.points))
    looks: dict[str, dict[str, Any]] = {
        name: {"color": colour, "marker": marker, "ms": 4, "lw": 1.1}
        for name, (colour, marker) in zip(
            methods, map(series_style, range(len(methods))), strict=True
        )
    }
    columns = 3 if len(lengths) > 1 else 2
    height = 6.2 + 0.2 * -(-len(methods) // columns)
    figure = new_figure(max(6.4, 3.4 * len(lengths)), height)
    panels = figure.subplots(2, len(lengths), sharey="row", sharex="col", squeeze=False)
    for column, length in enumerate(lengths):
        here = [point for point in curves.points if point.length == length]
        for panel, (_, recall) in zip(panels[:, column], _ROWS, strict=True):
            for method in methods:
                found = sorted((p.cost, recall(p)) for p in here if p.method == method)
                panel.plot(*zip(*found, strict=True), ls=_line(found), **looks[method])
            open_axes(panel)
        panels[0][column].set_title(f"up to {length:,} tokens")
        panels[1][column].set_xlabel("cost: blocks with estimates / causal blocks")
    for panel, (label, _) in zip(panels[:, 0], _ROWS, strict=True):
        panel.set_ylabel(label)
    legend_below(figure, [Line2D([], [], label=name, **looks[name]) for name in methods], columns)
    return figure


def _line(found: Sequence[tuple[float, float]]) -> str:
    recalls = [recall for _, recall in found]
    return "-" if recalls == sorted(recalls) else "none"
