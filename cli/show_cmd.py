"""`sp-profile show`: what a profile holds, as tables and maps."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import profile_argument, with_output
from .output import Output

if TYPE_CHECKING:
    from sp_runtime.profile import Plan, Profile


@click.command()
@profile_argument
@click.option(
    "--layer", "layers", type=click.IntRange(min=0), multiple=True, metavar="N",
    help="List the heads of layer N instead; repeatable.",
)  # fmt: skip
@click.option(
    "--plan", "plan_name", metavar="NAME", default="", help="Another of the profile's plans."
)
@click.option(
    "--heatmap",
    type=click.Choice(["cost", "density"]),
    default="cost",
    show_default=True,
    help="What the map of layers and heads shows; density is read from heads.parquet.",
)
@click.option("--no-heatmap", is_flag=True, help="Draw no maps.")
@click.option("--all-clusters", is_flag=True, help="List every cluster, not the largest 20 alone.")
@with_output
def show(
    output: Output,
    profile: Path,
    layers: tuple[int, ...],
    plan_name: str,
    heatmap: str,
    no_heatmap: bool,
    all_clusters: bool,
) -> None:
    """Show what PROFILE (a folder or its profile.json) holds.

    Maps have a row a layer and a column a head: half blocks on a terminal with colours, digits and
    letters without (NO_COLOR, a file, a pipe). --json prints the profile itself, whatever else is
    asked for.

    \b
    Examples:
      sp-profile show profiles/smollm2-135m
      sp-profile show profiles/smollm2-135m --heatmap density
      sp-profile show profiles/smollm2-135m --layer 4
    """
    from sp_runtime.operating_point import OperatingPoint
    from sp_runtime.profile import load_profile
    from sp_runtime.profile_source import find_profile

    file = find_profile(profile, tables=bool(layers) or heatmap == "density")
    loaded = load_profile(file)
    plan = loaded.plan_of(OperatingPoint(plan=plan_name))
    measure = None if no_heatmap else heatmap
    if output.json_mode:
        output.document(_document(loaded))
    elif layers:
        from .show_layer import print_layers

        print_layers(output, loaded, plan, file.parent, layers)
    else:
        _print(output, loaded, plan, file.parent, measure, every_cluster=all_clusters)


def _print(
    output: Output,
    profile: Profile,
    plan: Plan,
    folder: Path,
    measure: str | None,
    *,
    every_cluster: bool,
) -> None:
    from .show_plan import print_head_patterns, print_plan, print_plans, print_points
    from .show_tables import print_clusters, print_summary

    print_summary(output, profile)
    print_clusters(output, profile, every=every_cluster)
    if plan.heads:
        print_plan(output, plan)
        if measure is not None:
            from .show_maps import print_maps

            print_maps(output, profile, plan, folder, measure)
    else:
        output.line("no plan: nothing was measured, and rule plan is refused")
    print_plans(output, profile)
    print_head_patterns(output, profile)
    print_points(output, profile)


def _document(profile: Profile) -> dict[str, Any]:
    import json

    from sp_runtime.profile import profile_to_json

    from .show_plan import mean_cost, mean_recall

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
            "predicted_cost": mean_cost(profile.plan.heads),
            "predicted_recall": mean_recall(profile.plan.heads),
        },
    }
