"""Layer by head maps: density, clusters, the plan's assignments and its predicted costs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from sp_profile.figures.palette import (
    ASSIGNMENT_COLOURS,
    ASSIGNMENT_LETTERS,
    OKABE_ITO,
    scale_top,
)
from sp_profile.report.chart import Chart, class_map, head_name, map_height, value_map
from sp_profile.report.data_similarity import cluster_labels
from sp_profile.report.data_types import ReportData
from sp_profile.report.wording import PLUS_MINUS, STAR, percent, plural
from sp_runtime.fingerprint import ModelFingerprint
from sp_runtime.profile import Plan


def density_chart(data: ReportData) -> Chart | None:
    """Density of the gamma-masks; None where nothing was measured."""
    if not data.heads:
        return None
    model = data.profile.model
    values = [row.density for row in data.heads]
    layers = model.full_layers
    means = _layer_means(values, model.num_heads)
    thin, full = means.index(min(means)), means.index(max(means))
    return Chart(
        name="density",
        title="Density by layer and head",
        caption=(
            f"Share of causal blocks that hold {percent(data.profile.calibration.gamma)} of a "
            f"head's attention, mean over the prompts. Mean over heads "
            f"{sum(values) / len(values):.2f}; layer {layers[thin]} is the sparsest "
            f"({means[thin]:.2f}), layer {layers[full]} the densest ({means[full]:.2f})."
        ),
        figure=value_map(
            values,
            layers,
            model.num_heads,
            label="density",
            top=scale_top(max(values)),
            hover=[
                f"layer {row.layer}, head {row.head}: density {row.density:.3f} "
                f"{PLUS_MINUS} {row.density_std:.3f}"
                for row in data.heads
            ],
        ),
        height=map_height(len(layers)),
        picks=True,
    )


def cluster_chart(data: ReportData) -> Chart | None:
    """Clusters in colours and numbers; None without clusters."""
    clusters = data.profile.clusters
    if not clusters:
        return None
    model = data.profile.model
    place = {cluster.id: number for number, cluster in enumerate(clusters)}
    labels = cluster_labels(data.profile)
    anchors = {cluster.anchor for cluster in clusters}
    clustered = sum(len(cluster.members) for cluster in clusters)
    enabled = {cluster.id for cluster in clusters if cluster.enabled}
    letters, hover = [], []
    for ref, label in zip(data.refs, labels.tolist(), strict=True):
        star = STAR if ref in anchors else ""
        letters.append("" if label < 0 else f"{label}{star}")
        state = "on" if label in enabled else "off"
        what = "no cluster" if label < 0 else f"cluster {label} ({state})"
        hover.append(
            f"layer {ref.layer}, head {ref.head}: {what}" + (", its anchor" if star else "")
        )
    return Chart(
        name="clusters",
        title="Clusters by layer and head",
        caption=(
            f"{plural(len(clusters), 'cluster')} with {clustered} of {len(labels)} heads, "
            f"{len(enabled)} enabled for sharing. {STAR} marks a cluster's anchor, an empty "
            "cell a head that is like too few others. Colours repeat; the numbers tell clusters "
            "apart."
        ),
        figure=class_map(
            [place.get(label, -1) for label in labels.tolist()],
            model.full_layers,
            model.num_heads,
            colours=[OKABE_ITO[number % len(OKABE_ITO)] for number in range(len(clusters))],
            letters=letters,
            hover=hover,
        ),
        height=map_height(len(model.full_layers)),
        picks=True,
    )


def plan_charts(data: ReportData) -> Iterator[Chart]:
    """What each plan assigns to each head, and the cost that the profile's own one predicts."""
    own, model = data.profile.plan, data.profile.model
    if own.heads:
        yield _assignment_chart(own, model, "plan", "What the plan assigns to each head")
        costs = [head.cost for head in own.heads]
        yield Chart(
            name="plan-cost",
            title="Predicted cost of each head",
            caption=(
                "Blocks computed and spent on estimates over causal blocks, as measured on the "
                f"calibration prompts; mean {sum(costs) / len(costs):.3f}, where dense attention "
                "is 1."
            ),
            figure=value_map(
                costs,
                model.full_layers,
                model.num_heads,
                label="cost",
                top=scale_top(max(costs)),
                hover=_plan_hover(own),
            ),
            height=map_height(len(model.full_layers)),
            picks=True,
        )
    for number, named in enumerate(data.profile.plans):
        yield _assignment_chart(
            named.plan, model, f"plan-{number}", f"What plan {named.name} assigns to each head"
        )


def _assignment_chart(plan: Plan, model: ModelFingerprint, name: str, title: str) -> Chart:
    names = list(ASSIGNMENT_COLOURS)
    counts = Counter[str](head.assignment for head in plan.heads)
    key = ", ".join(
        f"{ASSIGNMENT_LETTERS[name]} {name.replace('_', '-')} ({counts[name]})"
        for name in names
        if counts[name]
    )
    return Chart(
        name=name,
        title=title,
        caption=f"{key}.",
        figure=class_map(
            [names.index(head.assignment) for head in plan.heads],
            model.full_layers,
            model.num_heads,
            colours=[ASSIGNMENT_COLOURS[name] for name in names],
            letters=[ASSIGNMENT_LETTERS[head.assignment] for head in plan.heads],
            hover=_plan_hover(plan),
        ),
        height=map_height(len(model.full_layers)),
        picks=True,
    )


def _plan_hover(plan: Plan) -> list[str]:
    lenders = ["" if h.lender is None else f" from {head_name(h.lender)}" for h in plan.heads]
    return [
        f"layer {head.layer}, head {head.head}: {head.assignment}{lender}, predicted cost "
        f"{head.cost:.3f}, recall {head.recall:.3f}"
        for head, lender in zip(plan.heads, lenders, strict=True)
    ]


def _layer_means(values: Sequence[float], num_heads: int) -> list[float]:
    return [
        sum(values[start : start + num_heads]) / num_heads
        for start in range(0, len(values), num_heads)
    ]
