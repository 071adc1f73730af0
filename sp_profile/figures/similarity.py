"""The Jaccard matrix of all heads in the order of its dendrogram, with the clusters between."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sp_profile.figures.palette import OKABE_ITO, VERMILLION
from sp_profile.figures.style import SMALL, bare_axes, new_figure, open_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

    from sp_profile.report.data_types import ReportData

_MAX_SIDE = 1024
"""Larger matrices are shown as means of square cells: more pixels than this nobody sees."""
_WHITE = (1.0, 1.0, 1.0)


def jaccard_figure(data: ReportData) -> Figure | None:
    """None where similarity was not measured or there are too few heads."""
    if data.similarity is None or data.dendrogram is None:
        return None
    order = data.dendrogram.order
    figure = new_figure(6.0, 6.6)
    figure.set_layout_engine("constrained", h_pad=0.02, hspace=0.0)
    grid = figure.add_gridspec(3, 2, height_ratios=(1.0, 0.12, 5.0), width_ratios=(5.0, 0.16))
    tree, strip, matrix = (figure.add_subplot(grid[row, 0]) for row in range(3))
    _draw_tree(tree, data)
    _draw_strip(strip, data)
    square = square_of(data.similarity.mean, len(order))[np.ix_(order, order)]
    extent = (-0.5, len(order) - 0.5, len(order) - 0.5, -0.5)
    image = matrix.imshow(
        coarse(square, _MAX_SIDE), cmap=_colours(), vmin=0, vmax=1, aspect="auto", extent=extent,
        interpolation="nearest",
    )  # fmt: skip
    bare_axes(matrix)
    matrix.set_xlabel(f"{len(order)} heads in the order of the dendrogram")
    bar = figure.colorbar(image, cax=figure.add_subplot(grid[2, 1]))
    bar.outline.set_visible(False)
    bar.set_label("Jaccard of the block masks, mean over prompts")
    return figure


def square_of(condensed: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """float32 [LH, LH] from SciPy's condensed form; 1 with itself, NaN for -1."""
    square = np.ones((heads, heads), np.float32)
    rows, columns = np.triu_indices(heads, 1)
    values = np.where(condensed < 0, np.float32(np.nan), condensed)
    square[rows, columns] = square[columns, rows] = values
    return square


def coarse(square: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    """The same of at most `side` rows and columns, means of square cells; NaN only from NaN."""
    heads = len(square)
    if heads <= side:
        return square
    starts = (np.arange(side) * heads) // side
    present = np.isfinite(square)
    sums = np.where(present, square, 0.0)
    for axis in (0, 1):
        sums = np.add.reduceat(sums, starts, axis=axis)
        present = np.add.reduceat(present.astype(np.int64), starts, axis=axis)
    return np.where(present > 0, sums / np.maximum(present, 1), np.nan).astype(np.float32)


def _draw_tree(axes: Axes, data: ReportData) -> None:
    from matplotlib.collections import LineCollection

    drawn, settings = data.dendrogram, data.profile.clustering
    assert drawn is not None
    joints = np.stack([drawn.x, drawn.y], axis=-1)
    axes.add_collection(LineCollection(list(joints), colors="0.35", linewidths=0.5))
    axes.set_xlim(-0.5, len(drawn.order) - 0.5)
    axes.set_ylim(0, max(1.0, float(drawn.y.max())))
    axes.set_xticks([])
    axes.set_yticks([0, 0.5, 1])
    axes.set_ylabel("1 - Jaccard")
    open_axes(axes)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    if settings is not None:
        axes.axhline(settings.threshold, color=VERMILLION, lw=0.9, ls=(0, (4, 3)))


def _draw_strip(axes: Axes, data: ReportData) -> None:
    """The cluster of every head, in the colours of the cluster map."""
    from matplotlib.colors import to_rgb

    place = {cluster.id: number for number, cluster in enumerate(data.profile.clusters)}
    of_head = data.profile.clusters_by_head()
    assert data.dendrogram is not None
    refs = data.refs
    found = [of_head.get(refs[head]) for head in data.dendrogram.order]
    colours = [
        _WHITE if one is None else to_rgb(OKABE_ITO[place[one.id] % len(OKABE_ITO)])
        for one in found
    ]
    axes.imshow(np.array([colours]), aspect="auto", interpolation="nearest")
    bare_axes(axes)
    axes.set_ylabel("clusters", rotation=0, ha="right", va="center", fontsize=SMALL)


def _colours() -> Colormap:
    """Cividis, grey where a pair has no Jaccard."""
    import matplotlib

    return matplotlib.colormaps["cividis"].with_extremes(bad="0.8")
