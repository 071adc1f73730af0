"""`sp-profile plan`: the plan of a run at a stated recall, into a profile."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sp_runtime.errors import UsageError

from .completers import complete_profile
from .config_file import resolved_settings
from .options import (
    kind_price_option,
    output_option,
    overwrite_option,
    with_output,
    without_option,
)
from .output import Output

if TYPE_CHECKING:
    from sp_profile.plan_controls import Control
    from sp_profile.plan_types import Outcome, PlanCurve, PlannedPoint
    from sp_runtime.profile import Profile


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--from", "source", type=click.Path(path_type=Path), metavar="PROFILE",
    shell_complete=complete_profile, help="Add the plan to this profile of RUN, which stays.",
)  # fmt: skip
@click.option(
    "--name", default="", metavar="NAME",
    help="Of the plan and its operating point; the profile's own plan if left out.",
)  # fmt: skip
@click.option(
    "--target-recall", type=float, metavar="X",
    help="Mean attention mass that the heads keep, in (0, 1]; 0.95 unless a floor is given.",
)  # fmt: skip
@click.option(
    "--recall-floor", type=float, metavar="X",
    help="Attention mass that every head keeps at the least; 0.1 under the target if left out.",
)  # fmt: skip
@click.option(
    "--tail-gain", type=float, default=0.03, show_default=True, metavar="X",
    help="How far the worst tenth is to lie above vertical-slash's at that mean.",
)  # fmt: skip
@click.option(
    "--min-length", type=int, default=0, show_default=True, metavar="N",
    help="Leave out prompts of fewer tokens.",
)  # fmt: skip
@click.option(
    "--min-tokens", type=int, default=1024, show_default=True, metavar="N",
    help="Shorter prompts are computed densely at its operating point.",
)  # fmt: skip
@kind_price_option
@without_option
@click.option("--no-lending", is_flag=True, help="Every head computes its own mask.")
@click.option("--no-same-layer", is_flag=True, help="Borrow from heads of earlier layers alone.")
@click.option(
    "--controls", "controlled", is_flag=True,
    help="Compare with chance and with the planner without each of its parts.",
)  # fmt: skip
@output_option("Folder of the profile.")
@overwrite_option
@with_output(config=True, progress=True)
def plan(
    output: Output,
    run: Path,
    target: Path,
    source: Path | None,
    name: str,
    target_recall: float | None,
    recall_floor: float | None,
    tail_gain: float,
    min_length: int,
    min_tokens: int,
    kind_price: tuple[str, ...],
    without: tuple[str, ...],
    no_lending: bool,
    no_same_layer: bool,
    controlled: bool,
    overwrite: bool,
) -> None:
    """Choose what every head computes, into a profile.

    The cheapest plan whose heads keep the target on average, estimates counted. Heads may borrow
    masks from heads that run before them. Shown with what it costs on prompts that it was not
    chosen on, and with other methods at the same recall.

    \b
    Examples:
      sp-profile plan runs/smol -o profiles/smol --min-length 16384
      sp-profile plan runs/smol -o profiles/two --from profiles/smol --name fast --target-recall 0.9
      sp-profile plan runs/smol -o profiles/smol --controls
    """
    from sp_profile.artefact import FOLDER_NAMES
    from sp_profile.folder_swap import require_replaceable
    from sp_profile.plan_data import load_tables
    from sp_profile.plan_kinds import KindPrices
    from sp_profile.plan_points import plan_curve
    from sp_profile.plan_types import TARGETS, PlanSettings
    from sp_profile.plan_write import PlanTarget, write_plan
    from sp_profile.planning import make_plan
    from sp_profile.run_folder import open_run
    from sp_runtime.profile import PROFILE_NAME

    if target_recall is None and recall_floor is None:
        target_recall = 0.95
    settings = PlanSettings(
        target_recall=target_recall,
        recall_floor=recall_floor,
        tail_gain=tail_gain,
        min_length=min_length,
        kind_prices=KindPrices.parse(kind_price),
        without=without,
        lending=not no_lending,
        same_layer=not no_same_layer,
    )
    where = PlanTarget(
        output=target,
        source=source,
        name=name,
        min_tokens=min_tokens,
        settings=resolved_settings().toml(),
        overwrite=overwrite,
    )
    if controlled and target_recall is None:
        raise UsageError("controls compare at a mean recall", hint="give --target-recall")
    # The writer checks this too, but only after the work.
    require_replaceable(target, FOLDER_NAMES, PROFILE_NAME, overwrite=overwrite)
    opened = open_run(run)
    with output.progress("plan", "prompts") as progress:
        tables = load_tables(opened, min_length=min_length, progress=progress)
        chosen = make_plan(tables, settings)
        curve = plan_curve(opened.config, tables, TARGETS, settings, thorough=False)
    controls: tuple[Control, ...] = ()
    if controlled:
        from sp_profile.plan_controls import run_controls
        from sp_profile.plan_data import similarity_of

        with output.progress("controls", "prompts") as progress:
            similarity = similarity_of(opened, progress)
            assert similarity is not None, "its tables are not empty"
            controls = run_controls(tables, similarity, settings)
    with output.progress("write", "steps") as progress:
        written = write_plan(opened, chosen.plan, settings, where, progress)
    _document(output, target, name, written, chosen, curve, controls)
    _tell(output, target, name, written, chosen, curve, controls)


def _document(
    output: Output,
    target: Path,
    name: str,
    written: Profile,
    chosen: PlannedPoint,
    curve: PlanCurve,
    controls: tuple[Control, ...],
) -> None:
    output.document(
        {
            "schema": "sp.plan",
            "profile": str(target),
            "profile_id": written.profile_id,
            "name": name,
            "model": curve.model,
            "block_size": curve.block_size,
            "min_length": curve.min_length,
            "prompts": curve.prompts,
            "plan": dataclasses.asdict(chosen.summary),
            "curve": [dataclasses.asdict(point.summary) for point in curve.points],
            "controls": [dataclasses.asdict(control) for control in controls],
            "notes": list(curve.notes),
        }
    )


def _tell(
    output: Output,
    target: Path,
    name: str,
    written: Profile,
    chosen: PlannedPoint,
    curve: PlanCurve,
    controls: tuple[Control, ...],
) -> None:
    summary = chosen.summary
    output.line(f"profile {target}" + (f", plan {name}" if name else ""))
    output.line(f"id      {written.profile_id}")
    counts = ", ".join(f"{count} {kind}" for kind, count in summary.counts)
    output.line(f"plan: {counts}; {summary.lenders} lend")
    kinds = "; ".join(f"{kind} in {count} layers" for kind, count in summary.kinds) or "none"
    output.line(f"estimates: {kinds}; {summary.kinds_per_layer:.2f} kinds a layer")
    output.line(
        f"predicted: cost {summary.cost:.3f} at recall {summary.recall:.3f}, worst tenth "
        f"{summary.recall_p10:.3f}; {summary.prompts} prompts"
    )
    output.line()
    _curve(output, curve)
    output.line()
    rows = [
        (one.method, _figure(one.cost), _ratio(summary.cost, one.cost), _figure(one.recall_p10))
        for one in summary.references
    ]
    output.table(("at that recall", "cost", "plan / it", "p10"), rows)
    if summary.ceiling_share is not None:
        output.line(
            f"the plan saves {summary.ceiling_share:.0%} of what the heads' own exact masks save "
            "over vertical-slash"
        )
    if summary.left_out:
        output.line()
        rows = [_outcome(one.name, one.outcome) for one in summary.left_out]
        output.table(("chosen without", "cost", "recall", "p10"), rows)
    if controls:
        output.line()
        measured = [
            (one.name, _figure(one.cost), _figure(one.ratio), _figure(one.recall_p10), one.what)
            for one in controls
        ]
        output.table(("control", "cost", "/ plan", "p10", ""), measured, left=(0, 4))
    for note in (*summary.notes, *curve.notes):
        output.info(f"note: {note}")
    output.info(f"next: sp-profile show {target}")


def _curve(output: Output, curve: PlanCurve) -> None:
    rows = []
    for point in curve.points:
        summary, held = point.summary, point.held_out
        reference = point.reference("vertical_slash")
        rows.append(
            (
                f"{summary.target:.2f}",
                *_outcome("", point.outcome)[1:],
                *(("-", "-") if held is None else (f"{held.cost:.3f}", f"{held.recall:.3f}")),
                _figure(None if reference is None else reference.cost),
                _figure(summary.ceiling_share),
            )
        )
    columns = ("target", "cost", "recall", "p10", "held out", "recall", "vertical-slash", "ceiling")
    output.table(columns, rows, left=())


def _outcome(name: str, outcome: Outcome) -> tuple[str, str, str, str]:
    return (name, f"{outcome.cost:.3f}", f"{outcome.recall:.3f}", f"{outcome.recall_p10:.3f}")


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _ratio(cost: float, other: float | None) -> str:
    return _figure(cost / other if other else None)
