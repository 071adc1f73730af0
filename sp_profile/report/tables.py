"""What a profile says in figures, as text; the template escapes every cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sp_profile.report.chart import head_name
from sp_profile.report.data_types import ReportData
from sp_profile.report.wording import MORE, NOTHING, TIMES, number, percent, plural, signed
from sp_runtime.profile import HeadPlan, Profile

_PLAN_COLUMNS = ("predicted cost", "predicted recall", "lowest recall")


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """text: how many leading columns are words and not figures."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text: int = 1

    @property
    def names(self) -> bool:
        """Whether its rows have long names."""
        return max((len(row[0]) for row in self.rows), default=0) > 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """A figure at a glance, and what it is of."""

    value: str
    label: str


def facts(data: ReportData) -> tuple[Fact, ...]:
    """The profile in a few figures."""
    profile = data.profile
    heads = len(data.refs)
    clustered = sum(len(cluster.members) for cluster in profile.clusters)
    enabled = sum(cluster.enabled for cluster in profile.clusters)
    found = [
        Fact(value=f"{heads:,}", label=f"heads in {len(profile.model.full_layers)} layers"),
        Fact(
            value=f"{len(profile.clusters)}",
            label=f"clusters, with {percent(clustered / max(heads, 1))} of them; {enabled} enabled",
        ),
    ]
    if data.heads:
        mean = sum(row.density for row in data.heads) / len(data.heads)
        found.append(
            Fact(
                value=number(mean),
                label=f"mean density at {percent(profile.calibration.gamma)} of the attention",
            )
        )
    if profile.plan.heads:
        cost, recall = _means(profile.plan.heads)
        found.append(Fact(value=number(cost), label="predicted cost of the plan; dense is 1"))
        found.append(Fact(value=number(recall), label="attention mass that the plan keeps"))
    return tuple(found)


def summary_rows(profile: Profile) -> tuple[tuple[str, str], ...]:
    """Model and calibration, name and value."""
    model, calibration = profile.model, profile.calibration
    tasks = Counter(prompt.task or "own prompts" for prompt in calibration.prompts)
    lengths = Counter(prompt.tokens for prompt in calibration.prompts)
    sliding = model.num_layers - len(model.full_layers)
    rows = [
        ("model", profile.model_name),
        ("architecture", model.architecture),
        (
            "layers",
            f"{model.num_layers}" + (f", of which {sliding} are sliding-window" if sliding else ""),
        ),
        (
            "heads a layer",
            f"{model.num_heads}, over {plural(model.num_kv_heads, 'KV head')} of dimension "
            f"{model.head_dim}",
        ),
        ("context", f"{model.max_position_embeddings:,} tokens"),
        (
            "prompts",
            ", ".join(f"{n} {TIMES} {task}" for task, n in sorted(tasks.items())) or "none",
        ),
        (
            "tokens",
            ", ".join(f"{n} {TIMES} {tokens:,}" for tokens, n in sorted(lengths.items())[:8])
            + (f" {MORE}" if len(lengths) > 8 else "")
            or "none",
        ),
        ("gamma", f"{calibration.gamma:g} of the attention mass"),
        ("block size", f"{calibration.block_size} tokens"),
        (
            "arithmetic",
            calibration.dtype + (f" on {calibration.device}" * bool(calibration.device)),
        ),
        ("seed", f"{calibration.seed}"),
        ("chat template", "on" if calibration.chat_template else "off"),
        (
            "left out",
            f"{plural(calibration.quarantined, 'prompt')} of attention that is not finite",
        ),
        ("versions", ", ".join(f"{name} {version}" for name, version in calibration.versions)),
        ("profile", profile.profile_id),
    ]
    return tuple((name, value) for name, value in rows if value)


def layer_table(data: ReportData) -> Table | None:
    """Density and predicted cost by layer: the maps in figures."""
    if not data.heads:
        return None
    plan = data.profile.plan_by_head()
    rows = []
    for layer in data.profile.model.full_layers:
        found = [row for row in data.heads if row.layer == layer]
        costs = [plan[ref].cost for ref in plan if ref.layer == layer]
        densities = [row.density for row in found]
        rows.append(
            (
                str(layer),
                number(min(densities)),
                number(sum(densities) / len(densities)),
                number(max(densities)),
                number(sum(costs) / len(costs) if costs else None),
            )
        )
    return Table(
        caption="By layer",
        columns=("layer", "lowest density", "mean", "highest", "predicted cost"),
        rows=tuple(rows),
    )


def cluster_table(profile: Profile) -> Table | None:
    """Clusters with their evidence; imported ones have none."""
    if not profile.clusters:
        return None
    measured = profile.clustering is not None
    rows = []
    for cluster in profile.clusters:
        evidence = cluster.evidence
        measures = (
            number(evidence.jaccard_mean, 2),
            number(evidence.recall_mean, 2),
            number(evidence.recall_p10, 2),
            number(evidence.lender_density, 2),
            number(evidence.vertical_slash_density, 2),
            f"{signed(100 * evidence.saving, 2)} %",
        )
        rows.append(
            (
                str(cluster.id),
                "on" if cluster.enabled else "off",
                NOTHING if cluster.anchor is None else head_name(cluster.anchor),
                evidence.reason,
                str(len(cluster.members)),
                *(measures if measured else (NOTHING,) * len(measures)),
            )
        )
    return Table(
        caption="Clusters and their evidence",
        columns=(
            *("cluster", "state", "anchor", "why", "heads", "Jaccard", "recall", "recall p10"),
            *("density shared", "density alone", "saving"),
        ),
        rows=tuple(rows),
        text=4,
    )


def pattern_tables(profile: Profile) -> Iterator[Table]:
    """The patterns of single heads for the methods that the plan does not speak of, counted."""
    patterns = profile.head_patterns
    if patterns is None:
        return
    if patterns.minference is not None:
        shapes = Counter((one.kind, one.vertical, one.slash) for one in patterns.minference.heads)
        yield Table(
            caption=f"Patterns of method minference ({patterns.minference.source})",
            columns=("pattern", "vertical, tokens", "slash, tokens", "heads"),
            rows=tuple(
                (kind.replace("_", "-"), f"{vertical:,}", f"{slash:,}", str(count))
                for (kind, vertical, slash), count in sorted(shapes.items())
            ),
        )
    if patterns.moa is not None:
        windows = Counter((one.alpha, one.beta) for one in patterns.moa.heads)
        yield Table(
            caption=f"Windows of method moa ({patterns.moa.source})",
            columns=("tokens", "and of the length", "heads"),
            rows=tuple(
                (f"{alpha:,}", percent(beta), str(count))
                for (alpha, beta), count in sorted(windows.items())
            ),
        )


def plan_tables(profile: Profile) -> Iterator[Table]:
    """Assignments with their mean predictions, and the plans beside one another."""
    own = profile.plan
    if own.heads:
        groups: dict[str, list[HeadPlan]] = {}
        for head in own.heads:
            groups.setdefault(head.assignment, []).append(head)
        ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
        rows = [_plan_row(name.replace("_", "-"), heads) for name, heads in ordered]
        yield Table(
            caption="The plan",
            columns=("assignment", "heads", *_PLAN_COLUMNS),
            rows=(*rows, _plan_row("all heads", own.heads)),
        )
    if profile.plans:
        plans = [("its own", own)] if own.heads else []
        plans += [(named.name, named.plan) for named in profile.plans]
        yield Table(
            caption="Plans",
            columns=("plan", "heads", *_PLAN_COLUMNS, "floor", "target", "calibrated from, tokens"),
            rows=tuple(
                (
                    *_plan_row(name, plan.heads),
                    f"{plan.recall_floor:g}",
                    NOTHING if plan.target_recall is None else f"{plan.target_recall:g}",
                    NOTHING if plan.min_length is None else f"{plan.min_length:,}",
                )
                for name, plan in plans
            ),
        )


def points_table(profile: Profile) -> Table:
    """Named operating points."""
    rows = []
    for named in profile.points:
        point = named.point
        settings = (f"{value:g}" for value in (point.gamma, point.tau, point.delta))
        drift = NOTHING if point.drift is None else f"{point.drift:g}"
        budgets = (f"{point.min_budget:,}", f"{point.min_tokens:,}")
        kept = (f"{point.local_blocks}", f"{point.last_rows}")
        names = (named.name, point.method, point.rule, point.plan or NOTHING)
        rows.append((*names, *settings, drift, *kept, *budgets))
    return Table(
        caption="Operating points",
        columns=(
            *("name", "method", "rule", "plan", "gamma", "tau", "delta", "drift"),
            *("local blocks", "last rows"),
            *("least budget, tokens", "dense under, tokens"),
        ),
        rows=tuple(rows),
        text=4,
    )


def _plan_row(name: str, heads: Sequence[HeadPlan]) -> tuple[str, ...]:
    cost, recall = _means(heads)
    lowest = min(head.recall for head in heads)
    return (name, str(len(heads)), number(cost), number(recall), number(lowest))


def _means(heads: Sequence[HeadPlan]) -> tuple[float, float]:
    count = max(len(heads), 1)
    return sum(head.cost for head in heads) / count, sum(head.recall for head in heads) / count
