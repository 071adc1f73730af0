"""Layer by head maps: density, clusters and what the plan assigns.

Layer 0 is on top; of a model with far more layers than heads it is to the left, which fits a page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sp_profile.figures.palette import (
    ASSIGNMENT_COLOURS,
    ASSIGNMENT_LETTERS,
    OKABE_ITO,
    scale_top,
)
from sp_profile.figures.style import ink_on, legend_below, mixed, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from sp_profile.report.data_types import ReportData

_CELL = 0.19  # inches a layer
_LABELLED_CELLS = 1100
"""Maps of no more cells than this say in letters what they say in colours."""
_PALE = 0.6  # share of white in the colour of a cluster that is off
_NOTHING = "#F2F2F2"


def density_figure(data: ReportData) -> Figure | None:
    """Density of every head's own mask; None where nothing was measured."""
    if not data.heads:
        return None
    values = np.array([row.density for row in data.heads])
    top = scale_top(float(values.max()))
    grid = _Grid.of(data)
    figure, axes = grid.figure(legend_rows=0)
    image = axes.imshow(grid.image(values), cmap="cividis", vmin=0, vmax=top, aspect="auto")
    bar = figure.colorbar(image, ax=axes, fraction=0.08, pad=0.02 if grid.wide else 0.03)
    bar.outline.set_visible(False)
    bar.set_label("density of the head's own mask")
    return figure


def cluster_figure(data: ReportData) -> Figure | None:
    """Clusters by number and colour, enabled ones strong, anchors framed; None without any."""
    from matplotlib.patches import Patch, Rectangle

    profile = data.profile
    if not profile.clusters:
        return None
    place = {cluster.id: number for number, cluster in enumerate(profile.clusters)}
    of_head = profile.clusters_by_head()
    colours, letters = [], []
    for ref in data.refs:
        cluster = of_head.get(ref)
        letters.append("" if cluster is None else str(cluster.id))
        if cluster is None:
            colours.append(_NOTHING)
        else:
            colour = OKABE_ITO[place[cluster.id] % len(OKABE_ITO)]
            colours.append(colour if cluster.enabled else mixed(colour, _PALE))
    grid = _Grid.of(data)
    figure, axes = grid.figure(legend_rows=2)
    _paint(axes, grid, colours, letters)
    enabled = {str(cluster.id) for cluster in profile.clusters if cluster.enabled}
    for text in axes.texts:
        if text.get_text() in enabled:
            text.set_fontweight("bold")
    numbers = {ref: number for number, ref in enumerate(data.refs)}
    for cluster in profile.clusters:
        if cluster.anchor is not None:
            x, y = grid.place(numbers[cluster.anchor])
            corner = (x - 0.5, y - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, ec="black", lw=1.3, zorder=3))
    handles = [
        Patch(fc=OKABE_ITO[0], label="cluster, enabled"),
        Patch(fc=mixed(OKABE_ITO[0], _PALE), label="cluster, off"),
        Patch(fc=_NOTHING, label="in no cluster"),
        Patch(fc="white", ec="black", lw=1.3, label="anchor"),
    ]
    legend_below(figure, handles, _columns(figure))
    return figure


def assignment_figure(data: ReportData) -> Figure | None:
    """What every head computes under the plan, with counts; None without a plan."""
    from matplotlib.patches import Patch

    heads = data.profile.plan.heads
    if not heads:
        return None
    counts: Counter[str] = Counter(head.assignment for head in heads)
    grid = _Grid.of(data)
    figure, axes = grid.figure(legend_rows=-(-len(counts) // 2))
    _paint(
        axes,
        grid,
        [ASSIGNMENT_COLOURS[head.assignment] for head in heads],
        [ASSIGNMENT_LETTERS[head.assignment] for head in heads],
    )
    handles = [
        Patch(
            fc=ASSIGNMENT_COLOURS[name],
            label=f"{ASSIGNMENT_LETTERS[name]}  {name.replace('_', '-')} ({counts[name]})",
        )
        for name in ASSIGNMENT_COLOURS
        if counts[name]
    ]
    legend_below(figure, handles, _columns(figure))
    return figure


def _columns(figure: Figure) -> int:
    """Of a legend below."""
    return max(2, int(figure.get_figwidth() / 1.7))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Grid:
    """Where heads stand, which are numbered in (layer, head) order."""

    layers: tuple[int, ...]
    heads: int

    @classmethod
    def of(cls, data: ReportData) -> _Grid:
        model = data.profile.model
        return cls(layers=model.full_layers, heads=model.num_heads)

    @property
    def wide(self) -> bool:
        """Whether layers run to the right."""
        return len(self.layers) > 2 * self.heads

    def place(self, number: int) -> tuple[int, int]:
        """x and y of a head."""
        layer, head = divmod(number, self.heads)
        return (layer, head) if self.wide else (head, layer)

    def image(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Values [LH, ...] as rows and columns."""
        rows = values.reshape(len(self.layers), self.heads, *values.shape[1:])
        return rows.swapaxes(0, 1) if self.wide else rows

    def figure(self, *, legend_rows: int) -> tuple[Figure, Axes]:
        """A figure with axes for the image, and room for a legend below."""
        across: tuple[str, Sequence[int]] = ("head", range(self.heads))
        down: tuple[str, Sequence[int]] = ("layer", self.layers)
        if self.wide:
            across, down = down, across
        width = min(max(3.6, 1.0 + 1.25 * _CELL * len(across[1])), 10.0)
        height = min(max(2.4, 0.6 + _CELL * len(down[1])), 12.0) + 0.2 * legend_rows
        figure = new_figure(width, height)
        axes = figure.subplots()
        axes.set_xlabel(across[0])
        axes.set_ylabel(down[0])
        for axis, (_, names) in ((axes.xaxis, across), (axes.yaxis, down)):
            ticks = range(0, len(names), _step(len(names)))
            axis.set_ticks(ticks, [str(names[tick]) for tick in ticks])
        axes.tick_params(length=2)
        return figure, axes


def _paint(axes: Axes, grid: _Grid, colours: Sequence[str], letters: Sequence[str]) -> None:
    """Cells of those colours, with white seams and, where there is room, letters."""
    from matplotlib.colors import to_rgb

    pixels = grid.image(np.array([to_rgb(colour) for colour in colours]))
    axes.imshow(pixels, aspect="auto", interpolation="none")
    for axis, count in ((axes.yaxis, pixels.shape[0]), (axes.xaxis, pixels.shape[1])):
        axis.set_ticks(np.arange(count + 1) - 0.5, minor=True)
    axes.grid(True, which="minor", color="white", lw=0.6)
    axes.tick_params(which="minor", length=0)
    if len(colours) > _LABELLED_CELLS:
        return
    for number, (colour, letter) in enumerate(zip(colours, letters, strict=True)):
        x, y = grid.place(number)
        axes.text(
            x, y, letter, ha="center", va="center_baseline", fontsize=6.5, color=ink_on(colour)
        )


def _step(count: int) -> int:
    return 1 if count <= 16 else 2 if count <= 40 else 4 if count <= 64 else 8
