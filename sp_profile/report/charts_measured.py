"""Scatter plots: what clusters save and risk, recall against density, and score against cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from sp_profile.curves import CurvePoint
from sp_profile.eval.methods import DENSE
from sp_profile.eval.summary import LengthSummary
from sp_profile.figures.palette import BLUE, GREY, OKABE_ITO
from sp_profile.report.chart import Chart, axis, make_figure, plain
from sp_profile.report.data_types import ReportData

_SYMBOLS = (
    "circle", "square", "triangle-up", "diamond", "triangle-down", "pentagon", "x", "star",
    "triangle-left", "triangle-right",
)  # fmt: skip
_TICKS = tuple(step * 10**power for power in range(-2, 6) for step in (1, 2, 5))
_CURVE_HOVER = "%{{customdata}}: cost %{{x:.3f}}, {} %{{y:.3f}}<extra>%{{fullData.name}}</extra>"
_FOREMOST = ("plan", "vertical_slash")  # of the curves, drawn wider
_Abscissa = Callable[[LengthSummary], float | None]


def evidence_chart(data: ReportData) -> Chart | None:
    """Each cluster by what it saves and risks; None where no cluster has evidence."""
    clusters = [c for c in data.profile.clusters if c.evidence.recall_mean > 0]
    if not clusters or data.profile.clustering is None:
        return None
    import plotly.graph_objects as go

    traces = []
    for state, symbol, colour in ((True, "circle", BLUE), (False, "circle-open", GREY)):
        found = [cluster for cluster in clusters if cluster.enabled == state]
        if not found:
            continue
        traces.append(
            go.Scatter(
                x=[cluster.evidence.recall_mean for cluster in found],
                y=[100 * cluster.evidence.saving for cluster in found],
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [0.0] * len(found),
                    "arrayminus": [
                        max(c.evidence.recall_mean - c.evidence.recall_p10, 0.0) for c in found
                    ],
                    "thickness": 1,
                    "width": 3,
                },
                mode="markers+text",
                text=[str(cluster.id) for cluster in found],
                textposition="top center",
                marker={
                    "color": colour,
                    "symbol": symbol,
                    "size": [6 + 2 * len(c.members) ** 0.5 for c in found],
                    "line": {"width": 2, "color": colour},
                },
                name="enabled" if state else "off",
                customdata=[plain(cluster.evidence.reason) for cluster in found],
                hovertemplate="cluster %{text}: %{customdata}<extra></extra>",
            )
        )
    figure = make_figure(
        traces,
        xaxis=axis("attention mass that borrowers keep: the less, the riskier"),
        yaxis=axis("saving, % of the model's blocks"),
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
    )
    figure.add_hline(y=0, line={"color": GREY, "width": 1, "dash": "dash"})
    return Chart(
        name="evidence",
        title="What each cluster saves and risks",
        caption=(
            "A cluster pays above the dashed line. The bar reaches to the tenth percentile of "
            "recall over borrowers and prompts; larger circles hold more heads. The number is "
            "the cluster's."
        ),
        figure=figure,
        height=400,
    )


def curve_charts(data: ReportData) -> Iterator[Chart]:
    """Recall against cost of everything that the run has measured, one figure a length."""
    if data.curves is None:
        return
    points = data.curves.points
    styles = _styles([point.method for point in points])
    for length in sorted({point.length for point in points}):
        here = [point for point in points if point.length == length]
        yield Chart(
            name=f"curves-{length}",
            title=f"Recall against density, up to {length:,} tokens",
            caption=(
                f"Mean over heads and {here[0].prompts} prompts of {here[0].tokens:,.0f} tokens "
                "on average; dotted: the tenth percentile. Click a name to hide its curve."
            ),
            figure=_curves_figure(here, styles),
            height=620,
        )


def pareto_charts(data: ReportData) -> Iterator[Chart]:
    """Score against density, and against time where it was taken; one figure a length each."""
    if data.evaluation is None:
        return
    overview = data.evaluation.overview
    families = {method.label: method.family for method in overview.methods}
    names = {method.label: method.name for method in overview.methods}
    styles = _styles([f for f in families.values() if f != DENSE])
    abscissas: tuple[tuple[str, str, str, _Abscissa], ...] = (
        ("density", "density", "blocks computed and spent on estimates / causal blocks", _cost),
        ("time", "time to first token", "time to first token, ms", _milliseconds),
    )
    for key, title, label, abscissa in abscissas:
        for length in sorted({row.length for row in overview.lengths if row.length is not None}):
            rows = [row for row in overview.lengths if row.length == length]
            rows = [row for row in rows if abscissa(row) is not None]
            if not rows:
                continue
            yield Chart(
                name=f"pareto-{key}-{length}",
                title=f"Score against {title}, {length:,} tokens",
                caption=(
                    f"Mean over {', '.join(rows[0].tasks)}. Bars: "
                    f"{100 * overview.confidence:.0f} % intervals of the difference to dense. "
                    "Up and to the left is better."
                ),
                figure=_pareto_figure(rows, families, names, styles, abscissa, label),
                height=560,
            )


def _curves_figure(points: Sequence[CurvePoint], styles: dict[str, tuple[str, str]]) -> object:
    import plotly.graph_objects as go

    traces = []
    for method, (colour, symbol) in styles.items():
        found = sorted((p for p in points if p.method == method), key=lambda point: point.cost)
        if not found:
            continue
        shared = {
            "x": [point.cost for point in found],
            "legendgroup": method,
            "name": plain(method),
            "customdata": [plain(point.setting) for point in found],
        }
        means = go.Scatter(
            **shared,
            y=[point.recall for point in found],
            mode="lines+markers",
            line={"color": colour, "width": 3 if method in _FOREMOST else 1.6},
            marker={"symbol": symbol, "size": 8, "color": colour},
            hovertemplate=_CURVE_HOVER.format("recall"),
        )
        # A curve of one point has no line to see.
        tails = go.Scatter(
            **shared,
            y=[point.recall_p10 for point in found],
            mode="lines" if len(found) > 1 else "markers",
            line={"color": colour, "width": 1, "dash": "dot"},
            marker={"symbol": f"{symbol}-open", "size": 7, "color": colour},
            opacity=0.7,
            showlegend=False,
            hovertemplate=_CURVE_HOVER.format("tenth percentile"),
        )
        traces += [means, tails]
    return make_figure(
        traces,
        xaxis=axis("cost: blocks with estimates / causal blocks", rangemode="tozero"),
        yaxis=axis("recall: attention mass kept"),
    )


def _pareto_figure(
    rows: Sequence[LengthSummary],
    families: dict[str, str],
    names: dict[str, str],
    styles: dict[str, tuple[str, str]],
    abscissa: _Abscissa,
    label: str,
) -> object:
    import plotly.graph_objects as go

    traces = []
    dense = next((row for row in rows if row.method == DENSE), None)
    for family, (colour, symbol) in styles.items():
        found = sorted(
            ((x, row) for row in rows if families[row.method] == family and (x := abscissa(row))),
            key=lambda point: point[0],
        )
        if not found:
            continue
        spans = [row.difference or row.score for _, row in found]
        traces.append(
            go.Scatter(
                x=[x for x, _ in found],
                y=[100 * row.score.mean for _, row in found],
                error_y={
                    "type": "data",
                    "symmetric": False,
                    "array": [100 * (span.high - span.mean) for span in spans],
                    "arrayminus": [100 * (span.mean - span.low) for span in spans],
                    "thickness": 1,
                    "width": 3,
                },
                mode="lines+markers",
                line={"color": colour, "width": 1.4},
                marker={"symbol": symbol, "size": 8, "color": colour},
                name=plain(family),
                customdata=[plain(names[row.method]) for _, row in found],
                hovertemplate="%{customdata}: %{x:.3g}, score %{y:.1f} %<extra></extra>",
            )
        )
    if dense is not None:
        traces.append(
            go.Scatter(
                x=[abscissa(dense)],
                y=[100 * dense.score.mean],
                mode="markers",
                marker={"symbol": "star", "size": 14, "color": GREY},
                name=DENSE,
                hovertemplate="dense: %{x:.3g}, score %{y:.1f} %<extra></extra>",
            )
        )
    figure = make_figure(
        traces,
        xaxis=axis(label, type="log", tickvals=_TICKS, ticktext=[f"{t:g}" for t in _TICKS]),
        yaxis=axis("score, %"),
    )
    if dense is not None:
        figure.add_hline(y=100 * dense.score.mean, line={"color": GREY, "width": 1, "dash": "dash"})
    return figure


def _styles(names: Sequence[str]) -> dict[str, tuple[str, str]]:
    """A colour and a symbol for each name, no pair twice among 70."""
    return {
        name: (OKABE_ITO[number % len(OKABE_ITO)], _SYMBOLS[number % len(_SYMBOLS)])
        for number, name in enumerate(dict.fromkeys(names))
    }


def _cost(row: LengthSummary) -> float | None:
    return row.cost


def _milliseconds(row: LengthSummary) -> float | None:
    return None if row.seconds is None else 1e3 * row.seconds.ttft
