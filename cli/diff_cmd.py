"""`sp-profile diff`: what differs between two profiles, held against thresholds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .completers import complete_profile
from .options import Findings, number_option, with_output
from .output import Output

if TYPE_CHECKING:
    from sp_profile.diff_types import FieldChange, HeadChange, ProfileDiff

_SHOWN = 10


@click.command()
@click.argument("a", type=click.Path(path_type=Path), shell_complete=complete_profile)
@click.argument("b", type=click.Path(path_type=Path), shell_complete=complete_profile)
@number_option("--min-ari", float, "Least adjusted Rand index (1).")
@number_option("--max-moved", int, "Heads in another cluster (0).")
@number_option("--max-anchor-changes", int, "Clusters (0).")
@number_option("--max-enabled-changes", int, "Heads (0).")
@click.option("--max-plan-changes", type=float, metavar="SHARE", help="Share of heads (0).")
@number_option("--max-cost-change", float, "Mean predicted cost (0.01).")
@number_option("--max-density-change", float, "Mean over heads (0.01).")
@click.option(
    "--ignore",
    multiple=True,
    metavar="PART",
    help="model, prompts, settings, points or patterns: shown and not held against B; repeatable.",
)
@with_output(config=True)
def diff(output: Output, a: Path, b: Path, ignore: tuple[str, ...], **limits: Any) -> None:
    """Compare profile B with A; exit 5 where it is too far off.

    Equal profile ids are identical. Otherwise nothing that enters the identity may differ unless
    an option allows it.

    \b
    Examples:
      sp-profile diff profiles/smollm2-135m build/fresh
      sp-profile diff old new --max-moved 5 --max-plan-changes 0.02 --ignore prompts
    """
    from sp_profile.diff import diff_folders
    from sp_profile.diff_types import DiffThresholds

    given = {name: value for name, value in limits.items() if value is not None}
    found = diff_folders(a, b, DiffThresholds(**given, ignore=ignore))
    identical = {"identical": found.identical, "passed": not found.findings}
    output.document({"schema": "sp.diff", **identical, **dataclasses.asdict(found)})
    output.line(f"A {found.ids[0]}")
    output.line(f"B {found.ids[1]}")
    if found.identical:
        output.line("identical")
        return
    _print_summary(output, found)
    _print_details(output, found)
    if found.findings:
        raise Findings(len(found.findings))
    output.line("within the limits")


def _print_summary(output: Output, found: ProfileDiff) -> None:
    rows = [
        (name, "", "", "same" if not changes else f"{len(changes)} changed")
        for name, changes in (
            ("model", found.model),
            ("prompts", found.prompts),
            ("settings", found.settings),
            ("points", found.points),
            ("patterns", found.patterns),
        )
    ]
    clusters, plan, density = found.clusters, found.plan, found.density
    if clusters is not None:
        before, after = (
            f"{count} of {heads} heads"
            for count, heads in zip(clusters.clusters, clusters.clustered, strict=True)
        )
        rows.append(("clusters", before, after, f"ARI {clusters.ari:.3f}"))
        rows.append(("heads moved", "", "", str(len(clusters.moved))))
        rows.append(("anchors", "", "", f"{len(clusters.anchors)} changed"))
        rows.append(("enabled heads", "", "", f"{len(clusters.enabled)} changed"))
    if plan is not None:
        share = f"{len(plan.changed)} changed ({100 * plan.share:.1f} %)"
        rows.append(("plan, heads", "", "", share))
        rows.append(("plan, cost", *_figures(plan.cost)))
        rows.append(("plan, recall", *_figures(plan.recall)))
    if density is not None:
        before, after, _ = _figures(density.mean)
        change = f"{density.mean_change:.3f} mean, {density.max_change:.3f} max"
        rows.append(("density", before, after, change))
    output.table(("", "A", "B", "change"), rows, left=(0, 3))
    for note in found.notes:
        output.line(f"note: {note}")


def _figures(pair: tuple[float, float]) -> tuple[str, str, str]:
    return f"{pair[0]:.3f}", f"{pair[1]:.3f}", f"{pair[1] - pair[0]:+.3f}"


def _print_details(output: Output, found: ProfileDiff) -> None:
    fields: list[tuple[str, tuple[FieldChange, ...]]] = [
        ("model", found.model),
        ("prompts", found.prompts),
        ("settings", found.settings),
        ("points", found.points),
    ]
    heads: list[tuple[str, tuple[HeadChange, ...]]] = [("patterns", found.patterns)]
    if found.clusters is not None:
        fields.append(("anchors", found.clusters.anchors))
        heads += [("clusters", found.clusters.moved), ("enabled", found.clusters.enabled)]
    if found.plan is not None:
        heads.append(("plan", found.plan.changed))
        if found.plan.floor is not None:
            fields.append(("plan", (found.plan.floor,)))
    for title, changes in fields:
        _print_changes(output, title, [(c.field, c.before, c.after) for c in changes])
    for title, moved in heads:
        rows = [(f"{c.head.layer}.{c.head.head}", c.before, c.after) for c in moved]
        _print_changes(output, title, rows)
    if found.findings:
        output.line()
        output.line("too far")
        findings = [(f.measure, f.limit, f.found) for f in found.findings]
        output.table(("measure", "limit", "found"), findings, left=(0, 1, 2))


def _print_changes(output: Output, title: str, rows: Sequence[tuple[str, str, str]]) -> None:
    if not rows:
        return
    output.line()
    output.line(title)
    output.table(("", "A", "B"), rows[:_SHOWN], left=(0, 1, 2))
    if len(rows) > _SHOWN:
        output.line(f"and {len(rows) - _SHOWN} more; --json lists all")
