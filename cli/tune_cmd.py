"""`sp-profile tune`: operating points by what they must reach, instead of thresholds."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sp_runtime.errors import UsageError

from .completers import complete_eval_task
from .config_file import resolved_settings
from .options import (
    chat_template_option,
    device_option,
    dtype_option,
    kernels_option,
    kind_price_option,
    lengths_option,
    optional_model_option,
    output_option,
    overwrite_option,
    path_option,
    profile_argument,
    revision_option,
    seed_option,
    trust_option,
    with_output,
    without_option,
    words_option,
)
from .output import Output

if TYPE_CHECKING:
    from sp_profile.tune_types import CurvePoint, Goal, Origin, Trial, TuneReport
    from sp_runtime.profile import Profile

_GOALS = ("target_recall", "max_loss", "target_density")
_ORIGINS = {
    "given": "as asked for",
    "file": "measured, from the file",
    "measured": "measured here",
    "profile": "of the profile; not measured",
}


@click.command()
@profile_argument
@click.argument("run", type=click.Path(path_type=Path))
@optional_model_option("Measure the loss of every plan on this model.")
@revision_option
@click.option(
    "--target-recall", type=float, metavar="X", help="Mean attention mass that balanced keeps."
)
@click.option(
    "--max-loss", type=float, metavar="X",
    help="Most points of 100 that balanced loses against dense; needs --model.",
)  # fmt: skip
@click.option(
    "--target-density", type=float, metavar="X", help="Most blocks of balanced, estimates included."
)
@lengths_option(help_text="Tokens of the prompts it is for; those of RUN if left out: repeatable.")
@kind_price_option
@without_option
@path_option("--crossover", "Document of `sp-run bench layer`: where sparse beats dense.")
@click.option(
    "--min-tokens", type=int, metavar="N",
    help="Shorter prompts are dense; left out: from --crossover, else measured on a GPU.",
)  # fmt: skip
@words_option(
    "--task", name="tasks", default=("retrieval",), show_default=True,
    shell_complete=complete_eval_task, help_text="Evaluation tasks, with --model: repeatable.",
)  # fmt: skip
@click.option(
    "--samples", default=8, show_default=True, metavar="N", help="Prompts of each task and length."
)
@seed_option("Of these prompts.", default=1)
@chat_template_option("Make each prompt a user turn.", default=False)
@dtype_option
@device_option
@kernels_option
@trust_option
@output_option("Folder of the new profile.")
@overwrite_option
@with_output(config=True, progress=True)
def tune(
    output: Output,
    profile: Path,
    run: Path,
    target: Path,
    lengths: tuple[int, ...],
    crossover: Path | None,
    min_tokens: int | None,
    kind_price: tuple[str, ...],
    without: tuple[str, ...],
    overwrite: bool,
    **options: Any,
) -> None:
    """Make the points fast, balanced and safe of PROFILE.

    They come from its RUN. Balanced meets the one goal that is given; fast misses about twice its
    attention mass, safe half of it. With --model every plan is evaluated in the folder
    OUTPUT.trial, where the same command resumes; its prompts are never calibration prompts.

    \b
    Examples:
      sp-profile tune profiles/smol runs/smol --target-recall 0.95 -o profiles/tuned
      sp-profile tune profiles/smol runs/smol --model smollm2-135m --max-loss 1.0 -o profiles/tuned
      sp-run prefill --model smollm2-135m --profile profiles/tuned --point balanced prompts/
    """
    from sp_profile.plan_kinds import KindPrices
    from sp_profile.run_group import current_group
    from sp_profile.tune import tune as solve
    from sp_profile.tune_types import TuneConfig
    from sp_runtime.profile import load_profile
    from sp_runtime.profile_source import find_profile

    if not current_group().is_alone:
        raise UsageError("tune is one process", hint="start it without torchrun")
    goal = _goal(options)
    trial = _trial(options, target)
    found = find_profile(profile, tables=True)
    loaded = load_profile(found)
    with output.progress("tune", "steps") as bar:

        def progress(what: str, done: int, total: int) -> None:
            bar(done, total, what)

        tokens, origin = _min_tokens(output, loaded, crossover, min_tokens, options, progress)
        config = TuneConfig(
            goal=goal,
            min_tokens=tokens,
            origin=origin,
            lengths=tuple(sorted(set(lengths))),
            trial=trial,
            kind_prices=KindPrices.parse(kind_price),
            without=without,
            settings=resolved_settings().toml(),
            overwrite=overwrite,
        )
        tuned, report = solve(found.parent, loaded, run, target, config, progress)
    _tell(output, tuned, report, target, trial)


def _goal(options: dict[str, Any]) -> Goal:
    from sp_profile.tune_types import Goal

    given = {name: value for name in _GOALS if (value := options.pop(name)) is not None}
    if len(given) != 1:
        raise UsageError(
            f"{len(given)} goals were given",
            hint="one of --target-recall, --max-loss and --target-density",
        )
    ((kind, value),) = given.items()
    return Goal(kind=kind, value=value)  # type: ignore[arg-type]


def _trial(options: dict[str, Any], target: Path) -> Trial | None:
    from sp_profile.tune_trial import trial_folder
    from sp_profile.tune_types import Trial

    names = {field.name for field in dataclasses.fields(Trial)}
    settings = {name: value for name, value in options.items() if name in names}
    if settings["model"] is None:
        return None
    tasks = ",".join(options["tasks"])
    workers = len(os.sched_getaffinity(0))
    return Trial(**{**settings, "tasks": tasks}, folder=trial_folder(target), workers=workers)


def _min_tokens(
    output: Output,
    profile: Profile,
    crossover: Path | None,
    min_tokens: int | None,
    options: dict[str, Any],
    progress: Any,
) -> tuple[int, Origin]:
    """From how many tokens on attention is sparse, and who says so."""
    if min_tokens is not None and crossover is not None:
        raise UsageError("--min-tokens and --crossover say the same", hint="pass one of them")
    if min_tokens is not None:
        return min_tokens, "given"
    from sp_profile.crossover import measure_crossover, read_crossover

    if crossover is not None:
        return read_crossover(crossover, profile), "file"
    from sp_profile.models import resolve_device

    device = resolve_device(options["device"])
    if device.type != "cuda":
        output.detail("no GPU: the crossover to dense attention is not measured")
        return profile.point().min_tokens, "profile"
    from sp_runtime.kernels.select import select_kernels

    kernels = select_kernels(options["kernels"], device).kernels
    found = measure_crossover(
        profile, kernels, device, progress=lambda done, total: progress("crossover", done, total)
    )
    return found, "measured"


def _tell(
    output: Output, tuned: Profile, report: TuneReport, target: Path, trial: Trial | None
) -> None:
    output.document(
        {
            "schema": "sp.tune",
            "profile": str(target),
            "profile_id": tuned.profile_id,
            "trial": None if trial is None else str(trial.folder),
            **dataclasses.asdict(report),
        }
    )
    output.line(f"profile {target}")
    output.line(f"id      {tuned.profile_id}")
    lengths = ", ".join(map(str, report.lengths))
    output.line(
        f"{tuned.model_name}, prompts of {lengths} tokens, {report.prompts} of the run; shorter "
        f"than {report.min_tokens} is dense ({_ORIGINS[report.origin]})"
    )
    output.line()
    columns = ["target", "cost", "recall", "p10", "held out", "v-slash"]
    losses = any(row.measured is not None for row in report.curve)
    columns += ["blocks", "loss [95 %]"] if losses else ["kinds"]
    table = [_row(row, losses) for row in report.curve]
    output.table((*columns, "point"), table, left=(0, len(columns)))
    output.line("cost: blocks and estimates over causal blocks, on the calibration prompts; held")
    output.line(
        "out: cost and recall on the prompts not chosen on; v-slash: its cost at that recall"
    )
    if losses:
        output.line("blocks, loss: measured beside dense on other prompts; points of 100")
    else:
        output.line("kinds: of estimates that a layer computes, on average")
    for note in report.notes:
        output.info(f"note: {note}")
    output.info(f"next: sp-run prefill --profile {target} --point balanced ...")


def _row(row: CurvePoint, losses: bool) -> tuple[str, ...]:
    held_out = "-"
    if row.held_out_cost is not None and row.held_out_recall is not None:
        held_out = f"{row.held_out_cost:.3f} {row.held_out_recall:.3f}"
    cells = [
        f"{row.target:.4f}".rstrip("0"),
        f"{row.cost:.3f}",
        f"{row.recall:.3f}",
        f"{row.recall_p10:.3f}",
        held_out,
        "-" if row.vertical_slash_cost is None else f"{row.vertical_slash_cost:.3f}",
    ]
    if not losses:
        cells.append(f"{row.kinds:.1f}")
    elif row.measured is not None:
        loss = row.measured.loss
        cells += [
            f"{row.measured.cost:.3f}",
            f"{loss.mean:+.1f} [{loss.low:+.1f}, {loss.high:+.1f}]",
        ]
    return (*cells, ", ".join(row.names))
