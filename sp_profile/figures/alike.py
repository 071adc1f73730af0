"""Heads that look alike: an anchor, members of its cluster, and a head of another kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sp_profile.figures.gallery import by_likeness, foremost_cluster
from sp_profile.figures.masks import NOTE, PANEL, draw_mask, prompt_name, shades
from sp_profile.figures.similarity import square_of
from sp_profile.figures.style import MEDIUM, SMALL, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sp_profile.report.data_types import ReportData
    from sp_runtime.profile import Cluster, HeadRef

_MEMBERS = 3


def alike_figure(data: ReportData) -> Figure | None:
    """A row a prompt: the masks of the anchor, of its most, median and least like member, and of
    the head of no or another cluster that is least like it.

    Of the largest enabled cluster, or the largest. None without masks, similarity or an anchor.
    """
    cluster = foremost_cluster(data)
    if cluster is None or not data.heads or data.similarity is None or not data.gallery:
        return None
    refs = data.refs
    assert cluster.anchor is not None
    jaccard = square_of(data.similarity.mean, len(refs))[refs.index(cluster.anchor)]
    members = _spread(by_likeness(data, cluster))
    others = [number for number, ref in enumerate(refs) if ref not in cluster.members]
    unlike = sorted(others, key=lambda number: (float(np.nan_to_num(jaccard[number])), number))
    shown = [cluster.anchor, *members, *(refs[number] for number in unlike[:1])]
    numbers = [refs.index(ref) for ref in shown]
    rows = len(data.gallery)
    figure = new_figure(len(shown) * PANEL + 0.5, rows * PANEL + 0.8)
    panels = figure.subplots(rows, len(shown), squeeze=False)
    for row, prompt in zip(panels, data.gallery, strict=True):
        for axes, number in zip(row, numbers, strict=True):
            draw_mask(axes, shades(prompt.masks[number]))
        row[0].set_ylabel(prompt_name(prompt), fontsize=SMALL)
    for axes, ref, number in zip(panels[0], shown, numbers, strict=True):
        axes.set_title(_title(ref, cluster, float(jaccard[number])), fontsize=MEDIUM)
    figure.supxlabel(f"{NOTE}; Jaccard with the anchor, mean over prompts", fontsize=SMALL)
    return figure


def _spread(ranked: list[HeadRef]) -> list[HeadRef]:
    """The most, the median and the least like, or all where there are fewer."""
    places = np.linspace(len(ranked) - 1, 0, min(_MEMBERS, len(ranked))).astype(int)
    return [ranked[place] for place in places]


def _title(ref: HeadRef, cluster: Cluster, jaccard: float) -> str:
    name = f"{ref.layer}.{ref.head}"
    if ref == cluster.anchor:
        return f"anchor {name}\nof cluster {cluster.id}"
    kind = "" if ref in cluster.members else "unlike "
    return f"{kind}head {name}\nJaccard {jaccard:.2f}"
