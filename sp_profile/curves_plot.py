"""Recall against cost as a picture: means as lines, tenth percentiles dashed, a column a length."""

from __future__ import annotations

import io

from sp_profile.curves import CurvePoint, Curves

# Okabe and Ito's palette and shapes, so that no two methods differ in colour alone.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_DPI = 130


def draw_curves(curves: Curves) -> bytes:
    """A PNG."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    lengths = sorted({point.length for point in curves.points})
    methods = list(dict.fromkeys(point.method for point in curves.points))
    figure = Figure(figsize=(max(7.0, 3.6 * len(lengths)), 7.2), layout="constrained")
    panels = figure.subplots(2, len(lengths), sharey="row", squeeze=False)
    for column, length in enumerate(lengths):
        for number, method in enumerate(methods):
            found = sorted(
                (p for p in curves.points if p.method == method and p.length == length),
                key=lambda point: point.cost,
            )
            style = {
                "color": _COLOURS[number % len(_COLOURS)],
                "marker": _MARKERS[number % len(_MARKERS)],
            }
            for line, recall in enumerate((_mean, _tail)):
                panels[line][column].plot(
                    [point.cost for point in found], [recall(p) for p in found],
                    ms=4, lw=1.1, **style,
                )  # fmt: skip
        panels[0][column].set_title(f"up to {length:,} tokens", fontsize=10)
        panels[1][column].set_xlabel("cost, blocks with estimates / causal", fontsize=9)
        for panel in panels[:, column]:
            panel.grid(True, color="0.9", lw=0.6)
            panel.tick_params(labelsize=8)
            for side in ("top", "right"):
                panel.spines[side].set_visible(False)
    panels[0][0].set_ylabel("recall, mean", fontsize=9)
    panels[1][0].set_ylabel("recall, tenth percentile", fontsize=9)
    handles = [
        Line2D(
            [], [], color=_COLOURS[n % len(_COLOURS)], marker=_MARKERS[n % len(_MARKERS)], ms=4,
            lw=1.1, label=method,
        )
        for n, method in enumerate(methods)
    ]  # fmt: skip
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=3 if len(lengths) > 1 else 2,
        fontsize=8,
        frameon=False,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def _mean(point: CurvePoint) -> float:
    return point.recall


def _tail(point: CurvePoint) -> float:
    return point.recall_p10
