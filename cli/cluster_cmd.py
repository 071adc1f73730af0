"""`sp-profile cluster`: from a run folder to a profile."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .config_file import resolved_settings
from .options import number_option, output_option, overwrite_option, with_output
from .output import Output

if TYPE_CHECKING:
    from sp_profile.cluster import BuiltProfile


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--enable",
    default="evidence",
    show_default=True,
    metavar="evidence|all|top:K",
    help="Which clusters share under the published rules.",
)
@number_option("--distance", float, "1 - Jaccard where merging stops.", default=0.5)
@number_option("--min-cluster-size", int, "Smaller ones are noise.", default=5)
@number_option(
    "--recall-floor",
    float,
    "Attention mass that the plan keeps for each head, in (0, 1]; 0.9 without a target.",
)
@number_option(
    "--target-recall",
    float,
    "Attention mass that the plan keeps on average, in (0, 1]; `plan` says more.",
)
@number_option("--min-length", int, "Leave prompts of fewer tokens out of the plan.", default=0)
@number_option("--min-tokens", int, "Shorter prompts are computed densely.", default=1024)
@click.option(
    "--lender",
    type=click.Choice(["first", "anchor"]),
    default="first",
    show_default=True,
    help="Whose mask the evidence of a cluster is about.",
)
@number_option("--delta-quantile", float, "Set delta to this quantile of RUN.")
@number_option("--tau-quantile", float, "Set tau to this quantile of RUN.")
@number_option("--drift-quantile", float, "Set the drift guard to this quantile of RUN.")
@output_option("Folder of the profile.")
@overwrite_option
@with_output(config=True, progress=True)
def cluster(
    output: Output,
    run: Path,
    target: Path,
    enable: str,
    distance: float,
    min_cluster_size: int,
    recall_floor: float | None,
    target_recall: float | None,
    min_length: int,
    min_tokens: int,
    lender: str,
    delta_quantile: float | None,
    tau_quantile: float | None,
    drift_quantile: float | None,
    overwrite: bool,
) -> None:
    """Compare the heads of RUN, and write the profile.

    \b
    Examples:
      sp-profile cluster runs/smol -o profiles/smol
      sp-profile cluster runs/smol -o profiles/careful --recall-floor 0.95 --min-tokens 512
    """
    from sp_profile.cluster import ClusterConfig, build_with_report
    from sp_profile.evidence import parse_enable

    if recall_floor is None and target_recall is None:
        recall_floor = 0.9
    config = ClusterConfig(
        distance=distance,
        min_cluster_size=min_cluster_size,
        enable=parse_enable(enable),
        lender=lender,  # type: ignore[arg-type]
        recall_floor=recall_floor,
        target_recall=target_recall,
        tail_gain=0.0 if target_recall is None else 0.03,
        min_length=min_length,
        min_tokens=min_tokens,
        delta_quantile=delta_quantile,
        tau_quantile=tau_quantile,
        drift_quantile=drift_quantile,
        settings=resolved_settings().toml(),
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
