"""A plotly figure in the report, and what all of them share."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sp_profile.figures.palette import CIVIDIS, GREY
from sp_runtime.profile import HeadRef

_GRID = "rgba(127,127,127,0.28)"
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
_TALL = 500
LABELLED_CELLS = 1100
"""Maps of no more cells than this say in letters what they say in colours."""
SCALE = [[number / (len(CIVIDIS) - 1), colour] for number, colour in enumerate(CIVIDIS)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """One figure. name: its id in the page, in letters, digits and hyphens.

    caption: what it shows. aspect: height over width; height: in pixels where aspect is None.
    picks: a click on a cell shows that head in the gallery.
    """

    name: str
    title: str
    caption: str
    figure: Any
    aspect: float | None = None
    height: int = 380
    picks: bool = False

    @property
    def tall(self) -> bool:
        """Whether a narrow screen needs more height, for a legend of many lines."""
        return self.aspect is None and self.height >= _TALL and not self.picks


def plain(text: str) -> str:
    """Text as plotly shows it letter by letter: it reads labels as a kind of HTML."""
    return html.escape(text, quote=False)


def make_figure(traces: Sequence[Any], **layout: Any) -> Any:
    """A figure without plotly's own template; colours of text and axes are the page's."""
    import plotly.graph_objects as go

    settings: dict[str, Any] = {
        "template": "none",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": _FONT, "size": 12, "color": GREY},
        "margin": {"l": 52, "r": 12, "t": 12, "b": 46},
        "legend": {"orientation": "h", "x": 0, "y": 0, "yref": "container", "yanchor": "bottom"},
        "hoverlabel": {"font": {"family": _FONT}},
        "dragmode": "zoom",
    }
    return go.Figure(data=list(traces), layout={**settings, **layout})


def axis(title: str | None = None, **more: Any) -> dict[str, Any]:
    """An axis with a title and a faint grid."""
    settings: dict[str, Any] = {
        "gridcolor": _GRID,
        "zeroline": False,
        "linecolor": _GRID,
        "tickcolor": _GRID,
        "automargin": True,
    }
    if title is not None:
        settings["title"] = {"text": title, "standoff": 8}
    return {**settings, **more}


def map_axes(layers: Sequence[int], num_heads: int) -> dict[str, Any]:
    """Axes of a layer by head map: layer 0 on top, heads from left to right."""
    return {
        "xaxis": axis("head", showgrid=False, dtick=_step(num_heads), constrain="domain"),
        "yaxis": axis(
            "layer",
            showgrid=False,
            type="category",
            autorange="reversed",
            tickvals=[str(layer) for layer in layers[:: _step(len(layers))]],
        ),
    }


def by_layer(values: Sequence[Any], num_heads: int) -> list[list[Any]]:
    """Values of all heads in (layer, head) order as one row a layer."""
    return [list(values[start : start + num_heads]) for start in range(0, len(values), num_heads)]


def map_height(layers: int) -> int:
    """Pixels for so many layers."""
    return min(max(260, 15 * layers + 110), 1000)


def value_map(
    values: Sequence[float],
    layers: Sequence[int],
    num_heads: int,
    *,
    label: str,
    top: float,
    hover: Sequence[str],
) -> Any:
    """A layer by head map of values in [0, top]; NaN leaves a hole. hover: a text a head."""
    import plotly.graph_objects as go

    trace = go.Heatmap(
        z=np.array(by_layer(values, num_heads), dtype=np.float32),
        x=list(range(num_heads)),
        y=[str(layer) for layer in layers],
        zmin=0.0,
        zmax=top,
        colorscale=SCALE,
        text=by_layer([plain(text) for text in hover], num_heads),
        hovertemplate="%{text}<extra></extra>",
        xgap=1,
        ygap=1,
        colorbar={
            "title": {"text": label, "side": "right"},
            "thickness": 12,
            "outlinewidth": 0,
            "len": 0.9,
        },
    )
    return make_figure([trace], **map_axes(layers, num_heads))


def class_map(
    classes: Sequence[int],
    layers: Sequence[int],
    num_heads: int,
    *,
    colours: Sequence[str],
    letters: Sequence[str],
    hover: Sequence[str],
) -> Any:
    """A layer by head map of classes, numbers into `colours`; -1 leaves a hole.

    letters: what is written into each head's cell.
    """
    import plotly.graph_objects as go

    count = max(len(colours), 1)
    steps = [
        [(number + side) / count, colour]
        for number, colour in enumerate(colours)
        for side in (0, 1)
    ]
    labelled = len(classes) <= LABELLED_CELLS
    shown = [math.nan if number < 0 else number for number in classes]
    trace = go.Heatmap(
        z=np.array(by_layer(shown, num_heads), dtype=np.float32),
        x=list(range(num_heads)),
        y=[str(layer) for layer in layers],
        zmin=-0.5,
        zmax=count - 0.5,
        colorscale=steps or SCALE,
        showscale=False,
        text=by_layer([plain(letter) for letter in letters], num_heads) if labelled else None,
        texttemplate="%{text}" if labelled else None,
        textfont={"size": 10},
        customdata=by_layer([plain(text) for text in hover], num_heads),
        hovertemplate="%{customdata}<extra></extra>",
        hoverongaps=False,
        xgap=1,
        ygap=1,
    )
    return make_figure([trace], **map_axes(layers, num_heads))


def head_name(ref: HeadRef) -> str:
    """Such as 3.4: layer 3, head 4."""
    return f"{ref.layer}.{ref.head}"


def _step(count: int) -> int:
    return 1 if count <= 16 else 2 if count <= 40 else 4 if count <= 64 else 8
