"""`sp-profile show`: what a profile holds, as tables."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import with_output
from .output import Output

if TYPE_CHECKING:
    from sp_runtime.profile import HeadPlan, Profile


@click.command()
@click.argument("profile", type=click.Path(path_type=Path))
@with_output
def show(output: Output, profile: Path) -> None:
    """Show what PROFILE (a folder or its profile.json) holds."""
    from sp_runtime.profile import load_profile

    loaded = load_profile(profile)
    output.document(_document(loaded))
    _print_summary(output, loaded)
    _print_clusters(output, loaded)
    if loaded.plan.heads:
        _print_plan(output, loaded)
        _print_layers(output, loaded)
    else:
        output.line("no plan: nothing was measured, and rule plan is refused")
    _print_head_patterns(output, loaded)
    _print_points(output, loaded)


def _print_summary(output: Output, profile: Profile) -> None:
    model, calibration = profile.model, profile.calibration
    full = len(model.full_layers)
    lengths = sorted({prompt.tokens for prompt in calibration.prompts})
    tasks = Counter(prompt.task or "(own prompts)" for prompt in calibration.prompts)
    rows = (
        ("profile", profile.profile_id),
        ("model", f"{profile.model_name} ({model.architecture})"),
        (
            "shape",
            f"{model.num_layers} layers ({full} full attention), {model.num_heads} heads, "
            f"{model.num_kv_heads} KV heads, head_dim {model.head_dim}",
        ),
        ("prompts", ", ".join(f"{count} x {task}" for task, count in sorted(tasks.items()))),
        ("tokens", f"{lengths[0]} to {lengths[-1]}" if lengths else "none"),
        (
            "calibration",
            f"gamma {calibration.gamma}, block {calibration.block_size}, {calibration.dtype}, "
            f"seed {calibration.seed}, chat template {'on' if calibration.chat_template else 'off'}"
            + (f", {calibration.device}" if calibration.device else ""),
        ),
    )
    for name, value in rows:
        output.line(f"{name:<12} {value}")


def _print_clusters(output: Output, profile: Profile) -> None:
    from sp_runtime.profile import full_attention_heads

    enabled = sum(cluster.enabled for cluster in profile.clusters)
    clustered = sum(len(cluster.members) for cluster in profile.clusters)
    heads = len(full_attention_heads(profile.model))
    output.line()
    output.line(
        f"{len(profile.clusters)} clusters hold {clustered} of {heads} heads; {enabled} enabled "
        "for sharing"
    )
    if not profile.clusters:
        return
    rows = []
    for cluster in profile.clusters:
        evidence = cluster.evidence
        anchor = "-" if cluster.anchor is None else f"{cluster.anchor.layer}.{cluster.anchor.head}"
        rows.append(
            (
                str(cluster.id),
                str(len(cluster.members)),
                anchor,
                f"{evidence.jaccard_mean:.2f}",
                f"{evidence.recall_mean:.2f}",
                "yes" if cluster.enabled else "no",
                evidence.reason,
            )
        )
    columns = ("id", "heads", "anchor", "Jaccard", "recall", "on", "why")
    output.table(columns, rows, left=(2, 5, 6))


def _print_plan(output: Output, profile: Profile) -> None:
    groups: dict[str, list[HeadPlan]] = {}
    for head in profile.plan.heads:
        groups.setdefault(head.assignment, []).append(head)
    output.line(f"plan for a recall of at least {profile.plan.recall_floor:g}")
    rows = [
        (name, str(len(heads)), f"{_mean_cost(heads):.3f}", f"{_mean_recall(heads):.3f}")
        for name, heads in sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    ]
    rows.append(
        (
            "all heads",
            str(len(profile.plan.heads)),
            f"{_mean_cost(profile.plan.heads):.3f}",
            f"{_mean_recall(profile.plan.heads):.3f}",
        )
    )
    output.table(("assignment", "heads", "predicted cost", "predicted recall"), rows)
    output.line("cost: blocks with estimation / causal blocks; recall: attention mass kept")


def _print_layers(output: Output, profile: Profile) -> None:
    output.line()
    output.line("predicted cost by layer (mean over heads)")
    means = [
        (layer, _mean_cost([head for head in profile.plan.heads if head.layer == layer]))
        for layer in profile.model.full_layers
    ]
    for start in range(0, len(means), 8):
        cells = (f"{layer:>3} {mean:.2f}" for layer, mean in means[start : start + 8])
        output.line("  ".join(cells))
    sliding = len(profile.model.layer_types) - len(means)
    if sliding:
        output.line(f"{sliding} sliding-window layers stay native")


def _print_head_patterns(output: Output, profile: Profile) -> None:
    patterns = profile.head_patterns
    if patterns is None:
        return
    if patterns.minference is not None:
        table = patterns.minference
        counts = Counter((head.kind, head.vertical, head.slash) for head in table.heads)
        output.line()
        output.line(f"patterns of method minference: {table.source}")
        rows = [
            (kind, str(vertical), str(slash) if slash else "-", str(count))
            for (kind, vertical, slash), count in sorted(counts.items())
        ]
        output.table(("pattern", "v", "s", "heads"), rows)
    if patterns.moa is not None:
        windows = patterns.moa
        scaled = Counter((head.alpha, head.beta) for head in windows.heads)
        output.line()
        output.line(
            f"windows of method moa: {windows.source}; mean density {windows.density:g}, sink "
            f"{windows.sink} tokens"
        )
        cells = [(str(a), f"{b:g}", str(count)) for (a, b), count in sorted(scaled.items())]
        output.table(("alpha", "beta", "heads"), cells, left=())


def _print_points(output: Output, profile: Profile) -> None:
    output.line()
    output.line("operating points")
    rows = [
        (
            named.name,
            named.point.method,
            named.point.rule,
            f"{named.point.gamma:g}",
            f"{named.point.tau:g}",
            f"{named.point.delta:g}",
            str(named.point.min_budget),
            str(named.point.min_tokens),
        )
        for named in profile.points
    ]
    columns = ("name", "method", "rule", "gamma", "tau", "delta", "budget", "tokens")
    output.table(columns, rows, left=(0, 1, 2))
    output.line("budget: least tokens of vertical-slash; tokens: shorter prompts are dense")


def _document(profile: Profile) -> dict[str, Any]:
    import json

    from sp_runtime.profile import profile_to_json

    # The stored document itself, so that a script reads one format and not two.
    document: dict[str, Any] = json.loads(profile_to_json(profile))
    counts = Counter(head.assignment for head in profile.plan.heads)
    return {
        "schema": "sp.show",
        "profile": document,
        "summary": {
            "heads": len(profile.plan.heads),
            "clusters": len(profile.clusters),
            "clusters_enabled": sum(cluster.enabled for cluster in profile.clusters),
            "assignments": dict(sorted(counts.items())),
            "predicted_cost": _mean_cost(profile.plan.heads),
            "predicted_recall": _mean_recall(profile.plan.heads),
        },
    }


def _mean_cost(heads: list[HeadPlan] | tuple[HeadPlan, ...]) -> float:
    return sum(head.cost for head in heads) / max(len(heads), 1)


def _mean_recall(heads: list[HeadPlan] | tuple[HeadPlan, ...]) -> float:
    return sum(head.recall for head in heads) / max(len(heads), 1)
