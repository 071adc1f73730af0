"""The Pareto plot: score against density and against time, one column a length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sp_profile.atomic import publish_bytes
from sp_profile.eval.methods import DENSE
from sp_profile.eval.results import EvalSummary
from sp_profile.eval.summary import LengthSummary
from sp_profile.figures.palette import series_style
from sp_profile.figures.style import SMALL, drawing, encode, legend_below, new_figure, open_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH, _HEIGHT = 3.3, 3.0  # inches a panel
_ENTRY, _LETTER = 0.7, 0.07  # of the legend: inches beside a name, and a letter

Abscissa = Callable[[LengthSummary], float | None]


def plot_pareto(path: Path, summary: EvalSummary) -> None:
    """Write a PNG of `pareto_figure`, atomically.

    Raises ResourceError and UsageError as `publish_bytes`; UsageError without matplotlib.
    """
    with drawing():
        publish_bytes(path, encode(pareto_figure(summary), "png"))


def pareto_figure(summary: EvalSummary) -> Figure:
    """Per length, score against density and, where taken, time to first token.

    Bars are the 95 % intervals of the difference to dense (the score itself varies with the
    prompts, which all methods share).
    """
    rows = [row for row in summary.overview.lengths if row.length is not None]
    lengths = sorted({row.length for row in rows if row.length is not None})
    lines: list[tuple[str, Abscissa]] = [
        ("cost: blocks with estimates / causal blocks", lambda row: row.cost)
    ]
    if any(row.seconds is not None for row in rows):
        lines.append(
            ("time to first token, ms", lambda row: 1e3 * row.seconds.ttft if row.seconds else None)
        )
    families = {method.label: method.family for method in summary.overview.methods}
    styles = _styles(list(families.values()))
    width = max(2, len(lengths)) * _WIDTH
    entry = _ENTRY + _LETTER * max(map(len, styles), default=0)
    columns = max(1, min(2 * len(lengths), int(width / entry)))
    height = len(lines) * _HEIGHT + 0.4 + 0.2 * -(-(len(styles) + 1) // columns)
    figure = new_figure(width, height)
    panels = figure.subplots(len(lines), len(lengths), sharey=True, squeeze=False)
    for line, (label, abscissa) in enumerate(lines):
        for column, length in enumerate(lengths):
            panel = panels[line][column]
            here = [row for row in rows if row.length == length]
            if not any(abscissa(row) for row in here):
                panel.set_axis_off()
                continue
            _draw(panel, here, families, styles, abscissa)
            panel.set_xlabel(label, fontsize=SMALL)
            if line == 0:
                _logarithmic(panel)
                panel.set_title(f"{length:,} tokens")
        first = next((panel for panel in panels[line] if panel.axison), panels[line][0])
        first.set_ylabel("score, % (mean over tasks)")
        first.tick_params(labelleft=True)
    handles: dict[str, Any] = {}
    for panel in panels.flat:
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True):
            handles.setdefault(name, handle)
    legend_below(figure, list(handles.values()), columns)
    return figure


def _styles(families: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each family but dense, no pair twice."""
    names = [name for name in dict.fromkeys(families) if name != DENSE]
    return {name: series_style(number) for number, name in enumerate(names)}


def _draw(
    panel: Axes,
    rows: Sequence[LengthSummary],
    families: Mapping[str, str],
    styles: Mapping[str, tuple[str, str]],
    abscissa: Abscissa,
) -> None:
    """One panel; a family's points are joined in the order of the abscissa."""
    dense = next((row for row in rows if row.method == DENSE), None)
    panel.margins(x=0.06, y=0.08)
    if dense is not None:
        score, at = 100 * dense.score.mean, abscissa(dense)
        panel.axhline(score, color="black", lw=0.8, ls=(0, (4, 3)), zorder=1)
        if at is not None:
            panel.plot([at], [score], "k*", ms=9, label=DENSE, zorder=4)
    for family, (colour, marker) in styles.items():
        points = _points(rows, families, family, abscissa)
        if not points:
            continue
        intervals = [row.difference or row.score for _, row in points]
        panel.errorbar(
            [x for x, _ in points],
            [100 * row.score.mean for _, row in points],
            yerr=[
                [100 * (interval.mean - interval.low) for interval in intervals],
                [100 * (interval.high - interval.mean) for interval in intervals],
            ],
            color=colour,
            marker=marker,
            ms=5,
            lw=1.2,
            elinewidth=0.7,
            capsize=2,
            label=family,
            zorder=3,
        )
    open_axes(panel)


def _points(
    rows: Sequence[LengthSummary], families: Mapping[str, str], family: str, abscissa: Abscissa
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
