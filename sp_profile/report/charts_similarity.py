"""How alike heads are: the Jaccard matrix with its dendrogram, and its spread over prompts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from sp_profile.figures.palette import BLUE, GREY, OKABE_ITO, VERMILLION
from sp_profile.report.chart import SCALE, Chart, axis, make_figure, plain
from sp_profile.report.data_similarity import cluster_labels
from sp_profile.report.data_types import Quantiles, ReportData, SpreadGroup
from sp_profile.report.wording import MINUS, plural

JACCARD = "jaccard"
_MAX_ROWS = 48  # of the chart of single prompts


def jaccard_chart(data: ReportData) -> Chart | None:
    """The matrix in the dendrogram's order, under it; the page's script fills the matrix in."""
    if data.similarity is None or data.dendrogram is None:
        return None
    import plotly.graph_objects as go

    drawn, threshold = data.dendrogram, data.profile.clustering
    heads = len(drawn.order)
    labels = cluster_labels(data.profile)[drawn.order]
    clusters = {cluster.id: number for number, cluster in enumerate(data.profile.clusters)}
    strip = [[clusters[i] % len(OKABE_ITO) if i in clusters else np.nan for i in labels.tolist()]]
    gap = np.full((len(drawn.x), 1), np.nan)
    colours = len(OKABE_ITO)
    traces = [
        go.Heatmap(
            meta=JACCARD,
            z=[[0.0]],
            zmin=0.0,
            zmax=1.0,
            colorscale=SCALE,
            hoverinfo="none",
            colorbar={
                "title": {"text": "Jaccard", "side": "right"},
                "thickness": 12,
                "outlinewidth": 0,
                "len": 0.8,
                "y": 0.4,
            },
        ),
        go.Heatmap(
            z=np.array(strip, dtype=np.float32),
            zmin=-0.5,
            zmax=colours - 0.5,
            colorscale=[
                [(n + side) / colours, c] for n, c in enumerate(OKABE_ITO) for side in (0, 1)
            ],
            showscale=False,
            hoverinfo="none",
            yaxis="y2",
        ),
        go.Scatter(
            x=np.hstack([drawn.x, gap]).ravel().astype(np.float32),
            y=np.hstack([drawn.y, gap]).ravel().astype(np.float32),
            mode="lines",
            line={"width": 1, "color": GREY},
            hoverinfo="skip",
            showlegend=False,
            yaxis="y3",
        ),
    ]
    hidden: dict[str, Any] = {
        "ticks": "",
        "showticklabels": False,
        "showgrid": False,
        "zeroline": False,
    }
    figure = make_figure(
        traces,
        xaxis=axis("heads, in the order of the dendrogram", range=[-0.5, heads - 0.5], **hidden),
        yaxis=axis(domain=[0, 0.79], range=[heads - 0.5, -0.5], **hidden),
        yaxis2={"domain": [0.8, 0.82], "fixedrange": True, **hidden},
        yaxis3=axis(
            f"1 {MINUS} Jaccard", domain=[0.83, 1], range=[0, 1.02], fixedrange=True, nticks=4
        ),
        margin={"l": 52, "r": 12, "t": 8, "b": 34},
    )
    if threshold is not None:
        figure.add_shape(
            type="line",
            xref="x domain",
            x0=0,
            x1=1,
            yref="y3",
            y0=threshold.threshold,
            y1=threshold.threshold,
            line={"color": VERMILLION, "width": 1.5, "dash": "dash"},
        )
    measured = data.similarity.mean[data.similarity.mean >= 0]
    return Chart(
        name=JACCARD,
        title="Which heads look alike",
        caption=(
            f"Jaccard index of the block masks of every pair of {plural(heads, 'head')}, mean "
            f"over the prompts (median {np.median(measured) if len(measured) else 0:.2f}). The "
            "strip shows the clusters, the dashed line where merging stops. Drag to zoom, "
            "double-click to zoom out, click to see a head."
        ),
        figure=figure,
        aspect=1.12,
    )


def spread_charts(data: ReportData) -> Iterator[Chart]:
    """The Jaccard of pairs by task and length, and prompt by prompt."""
    broad = [group for group in data.spread if group.kind != "prompt"]
    single = [group for group in data.spread if group.kind == "prompt"]
    texts = {
        "spread": (
            broad,
            "Spread over tasks and lengths",
            "Lengths are the next power of two in tokens.",
        ),
        "spread-prompts": (single, "Spread over prompts", ""),
    }
    for name, (groups, title, remark) in texts.items():
        if not groups:
            continue
        shown = groups[:_MAX_ROWS]
        left_out = len(groups) - len(shown)
        remarks = [remark, f"{left_out} further prompts are not shown." if left_out else ""]
        lowest = min((g.correlation for g in groups if g.correlation is not None), default=None)
        told = "" if lowest is None else f" The lowest correlation is {lowest:.2f}."
        yield Chart(
            name=name,
            title=title,
            caption=(
                "Left: Jaccard of pairs of heads (box: half of the pairs, whiskers: nine in "
                "ten). Right: correlation over all pairs with the mean of the other prompts; "
                f"near 1, the same heads are alike whatever the prompt.{told} "
                + " ".join(filter(None, remarks))
            ).strip(),
            figure=_spread_figure(shown),
            height=110 + 40 * len(shown),
        )


def pair_spread_chart(data: ReportData) -> Chart | None:
    """How much the Jaccard of one pair varies over the prompts."""
    if data.similarity is None or len(data.profile.calibration.prompts) < 2:
        return None
    import plotly.graph_objects as go

    labels = cluster_labels(data.profile)
    first, second = (labels[side] for side in np.triu_indices(len(labels), 1))
    within = (first == second) & (first >= 0)
    spread = data.similarity.spread
    edges = np.linspace(0, max(float(spread.max(initial=0)), 1e-3), 41)
    centres = (edges[1:] + edges[:-1]) / 2
    traces = []
    medians = []
    for name, chosen, colour, dash in (
        ("pairs of one cluster", within, BLUE, "solid"),
        ("all pairs", np.ones_like(within), GREY, "dash"),
    ):
        if not chosen.any():
            continue
        counts, _ = np.histogram(spread[chosen], edges)
        medians.append(f"{np.median(spread[chosen]):.2f} over {name}")
        traces.append(
            go.Scatter(
                x=centres.astype(np.float32),
                y=(counts / counts.sum()).astype(np.float32),
                mode="lines",
                line={"color": colour, "width": 2, "dash": dash, "shape": "hvh"},
                name=name,
                hovertemplate="%{x:.3f}: %{y:.1%} of the pairs<extra></extra>",
            )
        )
    return Chart(
        name="pair-spread",
        title="How much one pair varies",
        caption=(
            "Standard deviation over the prompts of the Jaccard of each pair of heads; the "
            f"median is {' and '.join(medians)}."
        ),
        figure=make_figure(
            traces,
            xaxis=axis("standard deviation over prompts", rangemode="tozero"),
            yaxis=axis("share of pairs", tickformat=".0%", rangemode="tozero"),
            legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        ),
        height=340,
    )


def _spread_figure(groups: list[SpreadGroup]) -> object:
    import plotly.graph_objects as go

    names = [plain(_label(group)) for group in groups]
    traces = []
    for name, colour, side in (("pairs of one cluster", BLUE, 0), ("all pairs", GREY, 1)):
        found = [(label, _side(group, side)) for label, group in zip(names, groups, strict=True)]
        kept = [(label, q) for label, q in found if q is not None]
        if not kept:
            continue
        traces.append(
            go.Box(
                y=[label for label, _ in kept],
                q1=[q.lower for _, q in kept],
                median=[q.median for _, q in kept],
                q3=[q.upper for _, q in kept],
                lowerfence=[q.low for _, q in kept],
                upperfence=[q.high for _, q in kept],
                orientation="h",
                name=name,
                marker={"color": colour},
                line={"width": 1.4},
                hoverinfo="x+y+name",
            )
        )
    traces.append(
        go.Scatter(
            x=[group.correlation for group in groups],
            y=names,
            mode="markers",
            marker={"color": VERMILLION, "symbol": "diamond", "size": 9},
            name="correlation with the other prompts",
            xaxis="x2",
            hovertemplate="%{y}: %{x:.3f}<extra></extra>",
        )
    )
    low = min((g.correlation for g in groups if g.correlation is not None), default=0.0)
    return make_figure(
        traces,
        boxmode="group",
        xaxis=axis("Jaccard", range=[-0.02, 1.02], domain=[0, 0.64]),
        xaxis2=axis("correlation", range=[min(low - 0.05, 0.45), 1.04], domain=[0.69, 1]),
        yaxis=axis(type="category", autorange="reversed", showgrid=False),
        legend={"orientation": "h", "x": 0, "y": 1.01, "yanchor": "bottom", "traceorder": "normal"},
        margin={"l": 52, "r": 12, "t": 40, "b": 46},
    )


def _label(group: SpreadGroup) -> str:
    return f"up to {group.label}" if group.kind == "length" else group.label


def _side(group: SpreadGroup, side: int) -> Quantiles | None:
    return group.all if side else group.within
