"""The Pareto plot: score against density and against time, one column a length."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_profile.atomic import publish_bytes
from sp_profile.eval.methods import DENSE
from sp_profile.eval.results import EvalSummary
from sp_profile.eval.summary import LengthSummary

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, distinguishable with every common colour blindness (black is dense's);
# shapes tell families of one colour apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">")
_WIDTH, _HEIGHT = 3.3, 3.1  # inches a panel
_DPI = 130

Abscissa = Callable[[LengthSummary], float | None]


def plot_pareto(path: Path, summary: EvalSummary) -> None:
    """Write a PNG: per length, score against density and, where taken, time to first token.

    Bars are the 95 % intervals of the difference to dense (the score itself varies with the
    prompts, which all methods share). Raises ResourceError and UsageError as `publish_bytes`.
    """
    rows = [row for row in summary.overview.lengths if row.length is not None]
    lengths = sorted({row.length for row in rows if row.length is not None})
    axes_of: list[tuple[str, Abscissa]] = [
        ("blocks computed and estimates / causal blocks", lambda row: row.cost)
    ]
    if any(row.seconds is not None for row in rows):
        axes_of.append(
            ("time to first token, ms", lambda row: 1e3 * row.seconds.ttft if row.seconds else None)
        )
    figure = _figure(len(lengths), len(axes_of))
    panels = figure.subplots(len(axes_of), len(lengths), sharey=True, squeeze=False)
    styles = _styles([method.family for method in summary.overview.methods])
    families = {method.label: method.family for method in summary.overview.methods}
    for line, (label, abscissa) in enumerate(axes_of):
        for column, length in enumerate(lengths):
            panel = panels[line][column]
            here = [row for row in rows if row.length == length]
            _draw(panel, here, families, styles, abscissa)
            panel.set_xlabel(label, fontsize=8)
            if line == 0:
                _logarithmic(panel)
            if line == 0:
                panel.set_title(f"{length:,} tokens", fontsize=10)
            if column == 0:
                panel.set_ylabel("score, % (mean over tasks)", fontsize=9)
    handles: dict[str, Any] = {}
    for panel in panels.flat:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=min(len(handles), max(2, 2 * len(lengths))),
        fontsize=8,
        frameon=False,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI)
    publish_bytes(path, buffer.getvalue())


def _figure(columns: int, lines: int) -> Figure:
    # The object and not pyplot, which would choose a display and keep the figure.
    from matplotlib.figure import Figure

    size = (max(2, columns) * _WIDTH, lines * _HEIGHT + 0.9)
    return Figure(figsize=size, layout="constrained")


def _styles(families: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each family but dense, no pair twice."""
    names = [name for name in dict.fromkeys(families) if name != DENSE]
    return {
        name: (_COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)])
        for number, name in enumerate(names)
    }


def _draw(
    panel: Axes,
    rows: Sequence[LengthSummary],
    families: dict[str, str],
    styles: dict[str, tuple[str, str]],
    abscissa: Abscissa,
) -> None:
    """One panel; a family's points are joined in the order of the abscissa."""
    dense = next((row for row in rows if row.method == DENSE), None)
    panel.margins(x=0.06, y=0.08)
    if dense is not None:
        at = abscissa(dense)
        panel.axhline(100 * dense.score.mean, color="black", lw=0.8, ls=(0, (4, 3)), zorder=1)
        if at is not None:
            panel.plot([at], [100 * dense.score.mean], "k*", ms=9, label=DENSE, zorder=4)
    for family, (colour, marker) in styles.items():
        points = _points(rows, families, family, abscissa)
        if not points:
            continue
        xs = [x for x, _ in points]
        ys = [100 * row.score.mean for _, row in points]
        below, above = [], []
        for _, row in points:
            interval = row.difference or row.score
            below.append(100 * (interval.mean - interval.low))
            above.append(100 * (interval.high - interval.mean))
        panel.errorbar(
            xs,
            ys,
            yerr=[below, above],
            color=colour,
            marker=marker,
            ms=5,
            lw=1.2,
            elinewidth=0.7,
            capsize=2,
            label=family,
            zorder=3,
        )
    panel.grid(True, which="major", color="0.9", lw=0.6)
    panel.tick_params(labelsize=8)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _points(
    rows: Sequence[LengthSummary], families: dict[str, str], family: str, abscissa: Abscissa
) -> list[tuple[float, LengthSummary]]:
    """The points of a family that have an abscissa, by rising abscissa."""
    found = [(at, row) for row in rows if families[row.method] == family if (at := abscissa(row))]
    return sorted(found, key=lambda point: point[0])


def _logarithmic(panel: Axes) -> None:
    """A logarithmic abscissa with figures as 0.1 and not as powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 3.0, 5.0)))
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
