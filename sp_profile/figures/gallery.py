"""A head's block mask beside its anchor's, prompt by prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from sp_profile.figures.masks import NOTE, PANEL, draw_mask, prompt_name, shades
from sp_profile.figures.style import MEDIUM, SMALL, new_figure
from sp_runtime.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from sp_profile.report.data_types import GalleryPrompt, ReportData
    from sp_runtime.profile import Cluster, HeadRef


def gallery_figure(data: ReportData, head: HeadRef | None = None) -> Figure | None:
    """One row a prompt: attention mass where it was recorded, the head's mask, its anchor's.

    head: a member of a cluster with an anchor, by default `typical_member`. None where there is
    no such head or no masks were kept; UsageError where the head given is none.
    """
    chosen = typical_member(data) if head is None else head
    if chosen is None or not data.gallery:
        return None
    cluster = data.profile.clusters_by_head().get(chosen)
    if cluster is None or cluster.anchor is None:
        raise UsageError(f"head {chosen.layer}.{chosen.head} has no anchor to stand beside")
    number, anchor = data.refs.index(chosen), data.refs.index(cluster.anchor)
    masses = any(prompt.mass is not None for prompt in data.gallery)
    columns = 3 if masses else 2
    rows = len(data.gallery)
    figure = new_figure(columns * PANEL + 0.5, rows * PANEL + 0.7)
    panels = figure.subplots(rows, columns, squeeze=False)
    for row, prompt in zip(panels, data.gallery, strict=True):
        pictures: list[npt.NDArray[Any] | None] = [
            shades(prompt.masks[number]),
            shades(prompt.masks[anchor]),
        ]
        if masses:
            pictures.insert(0, None if prompt.mass is None else prompt.mass[number])
        for axes, picture in zip(row, pictures, strict=True):
            draw_mask(axes, picture)
        _label(row, prompt, number)
    _head_columns(panels[0], chosen, cluster, masses)
    figure.supxlabel(NOTE, fontsize=SMALL)
    return figure


def typical_member(data: ReportData) -> HeadRef | None:
    """The member nearest the median Jaccard to the anchor, of `foremost_cluster`."""
    cluster = foremost_cluster(data)
    if cluster is None or not data.heads:
        return None
    ranked = by_likeness(data, cluster)
    return ranked[len(ranked) // 2]


def foremost_cluster(data: ReportData) -> Cluster | None:
    """The largest enabled cluster with an anchor, or the largest one; None without any."""
    lending = [cluster for cluster in data.profile.clusters if cluster.anchor is not None]
    return max(lending, key=lambda one: (one.enabled, len(one.members), -one.id), default=None)


def by_likeness(data: ReportData, cluster: Cluster) -> list[HeadRef]:
    """Members but the anchor, from the least like it to the most."""
    alike = {(row.layer, row.head): row.jaccard_anchor for row in data.heads}
    others = [ref for ref in cluster.members if ref != cluster.anchor]
    return sorted(others, key=lambda ref: (alike[ref], ref))


def _label(row: npt.NDArray[np.object_], prompt: GalleryPrompt, head: int) -> None:
    """The prompt to the left, what the two masks have in common in the empty corner."""
    row[0].set_ylabel(prompt_name(prompt), fontsize=SMALL)
    said = [f"Jaccard {prompt.jaccard_anchor[head]:.2f}"]
    if prompt.recall_anchor is not None:
        said.append(f"recall {prompt.recall_anchor[head]:.2f}")
    row[-1].text(
        0.98, 0.97, "\n".join(said), ha="right", va="top", fontsize=SMALL,
        transform=row[-1].transAxes,
    )  # fmt: skip


def _head_columns(
    row: npt.NDArray[np.object_], head: HeadRef, cluster: Cluster, masses: bool
) -> None:
    assert cluster.anchor is not None
    titles = [
        f"mask of head {head.layer}.{head.head}",
        f"of its anchor, {cluster.anchor.layer}.{cluster.anchor.head}",
    ]
    if masses:
        titles.insert(0, f"attention of head {head.layer}.{head.head}")
    for axes, title in zip(row, titles, strict=True):
        axes.set_title(title, fontsize=MEDIUM)
