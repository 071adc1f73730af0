"""`sp-profile cluster`: from a run folder to a profile."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import overwrite_option, with_output
from .output import Output

if TYPE_CHECKING:
    from sp_profile.cluster import BuiltProfile


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-o", "--output", "target", required=True, type=click.Path(path_type=Path))
@click.option(
    "--enable",
    default="evidence",
    show_default=True,
    metavar="evidence|all|top:K",
    help="Which clusters share under the published rules.",
)
@click.option("--distance", default=0.5, show_default=True, help="1 - Jaccard where merging stops.")
@click.option("--min-cluster-size", default=5, show_default=True, help="Smaller ones are noise.")
@click.option("--recall-floor", default=0.9, show_default=True, help="Of the plan for each head.")
@click.option(
    "--min-tokens", default=1024, show_default=True, help="Shorter prompts are computed densely."
)
@click.option(
    "--lender",
    type=click.Choice(["first", "anchor"]),
    default="first",
    show_default=True,
    help="Whose mask the evidence of a cluster is about.",
)
@click.option("--delta-quantile", type=float, help="Set delta to this quantile of the calibration.")
@click.option("--tau-quantile", type=float, help="Set tau to this quantile of the calibration.")
@click.option("--drift-quantile", type=float, help="Set the drift guard to this quantile.")
@overwrite_option
@with_output
def cluster(
    output: Output,
    run: Path,
    target: Path,
    enable: str,
    distance: float,
    min_cluster_size: int,
    recall_floor: float,
    min_tokens: int,
    lender: str,
    delta_quantile: float | None,
    tau_quantile: float | None,
    drift_quantile: float | None,
    overwrite: bool,
) -> None:
    """Compare the heads of RUN, cluster them, and write the profile."""
    from sp_profile.cluster import ClusterConfig, build_with_report
    from sp_profile.evidence import parse_enable

    config = ClusterConfig(
        distance=distance,
        min_cluster_size=min_cluster_size,
        enable=parse_enable(enable),
        lender=lender,  # type: ignore[arg-type]
        recall_floor=recall_floor,
        min_tokens=min_tokens,
        delta_quantile=delta_quantile,
        tau_quantile=tau_quantile,
        drift_quantile=drift_quantile,
        overwrite=overwrite,
    )
    with output.progress("cluster", "steps") as progress:
        built = build_with_report(run, target, config, progress)
    _tell(output, built, target)


def _tell(output: Output, built: BuiltProfile, target: Path) -> None:
    profile, report = built.profile, built.report
    output.document(
        {
            "schema": "sp.cluster",
            "profile": str(target),
            "profile_id": profile.profile_id,
            "report": dataclasses.asdict(report),
        }
    )
    heads = len(profile.plan.heads)
    output.line(f"profile {target}")
    output.line(f"id      {profile.profile_id}")
    output.line(
        f"{report.clusters} clusters hold {report.clustered} of {heads} heads; {report.enabled} "
        f"enabled for sharing; {report.prompts} prompts compared"
    )
    counts = ", ".join(f"{count} {name}" for name, count in report.plan.counts)
    output.line(f"plan: {counts}")
    output.line(
        f"predicted: cost {report.plan.cost:.3f} at recall {report.plan.recall:.3f}; "
        f"vertical-slash alone {report.plan.vertical_slash_cost:.3f} at "
        f"{report.plan.vertical_slash_recall:.3f}"
    )
    for note in report.notes:
        output.info(f"note: {note}")
    output.info(f"next: sp-profile show {target}")
