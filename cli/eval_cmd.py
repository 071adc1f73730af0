"""`sp-run eval`: every method on the same prompts, paired with dense attention."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sp_runtime.errors import UsageError

from .completers import complete_eval_task, complete_method, complete_profile
from .errors import Failure
from .eval_table import print_summary
from .options import (
    PartialFailure,
    block_size_option,
    chat_template_option,
    device_option,
    dtype_option,
    include_text_option,
    join_group,
    kernels_option,
    lengths_option,
    number_option,
    optional_model_option,
    output_option,
    path_option,
    public_key_option,
    revision_option,
    seed_option,
    trust_option,
    with_output,
)
from .output import Output

if TYPE_CHECKING:
    from sp_profile.eval.request import EvalRequest
    from sp_profile.eval.results import EvalSummary


def _joined(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str:
    """One list of every use of the option, as its reader takes it."""
    return ",".join(values)


_DATA = ("essay", "squad", "hotpotqa", "infinitebench", "text")


@click.command(name="eval")
@optional_model_option("Alias, folder, hub id or .gguf file.")
@revision_option
@click.option(
    "--profile", "profiles", multiple=True, metavar="[NAME=]PATH", shell_complete=complete_profile,
    help="Profile of the model; further ones have names, and METHOD%NAME reads them.",
)  # fmt: skip
@public_key_option
@click.option(
    "--method", "methods", multiple=True, default=("dense",), show_default=True,
    metavar="SPEC,...", callback=_joined, shell_complete=complete_method,
    help="NAME[:RULE][:key=value]*[%PROFILE][@SAMPLES]: repeat it, or use commas; key={a,b} "
    "sweeps; point:NAME is an operating point of the profile.",
)  # fmt: skip
@click.option(
    "--task", "tasks", multiple=True, default=("ruler",), show_default=True,
    metavar="NAME,...", callback=_joined, shell_complete=complete_eval_task,
    help="Tasks and groups of tasks: repeat it, or use commas.",
)  # fmt: skip
@lengths_option(4096, help_text="Tokens of a prompt: repeat it, or use commas.")
@number_option("--samples", int, "Prompts of each task and length.", default=25)
@seed_option("Of the prompts.")
@chat_template_option("Make each prompt a user turn.", default=False)
@path_option("--data-essay", "Text for essay haystacks.")
@path_option("--data-squad", "SQuAD JSON for qa_1.")
@path_option("--data-hotpotqa", "HotpotQA JSON for qa_2.")
@path_option("--data-infinitebench", "Folder of its files.")
@path_option("--data-text", "Plain text for ppl.")
@click.option(
    "--data-prompts", multiple=True, metavar="PATH", help="Your own prompts, for task agreement."
)
@dtype_option
@device_option
@kernels_option
@block_size_option("Without a profile: 64 or 128 tokens.")
@click.option("--timing/--no-timing", "timed", default=None, help="Take times; on if run alone.")
@include_text_option
@number_option("--workers", int, "Processes that make prompts; one a core if left out.")
@number_option("--max-seconds", float, "Begin no cell after so long.")
@click.option("--extend", is_flag=True, help="Add methods, tasks, lengths or samples to a folder.")
@click.option("--prepare-only", is_flag=True, help="Make the prompts and stop.")
@number_option("--timing-pass", int, "Only take times, on N prompts a cell.")
@number_option("--recall-pass", int, "Only measure recall, on N prompts a cell.")
@click.option(
    "--audit", type=float, default=0.25, show_default=True, metavar="SHARE",
    help="Share of the heads whose recall a recall pass measures.",
)  # fmt: skip
@click.option("--report-only", is_flag=True, help="Make the results of a folder again.")
@click.option("--reference", metavar="METHOD", help="Sweep to compare with at equal density.")
@click.option("--plot/--no-plot", default=None, help="Write pareto.png; on where it can be drawn.")
@trust_option
@output_option("Folder; the same command resumes an interrupted evaluation.")
@with_output(config=True, progress=True)
def evaluate(
    output: Output,
    target: Path,
    model: str | None,
    report_only: bool,
    reference: str | None,
    plot: bool | None,
    **options: Any,
) -> None:
    """Score methods on tasks, paired with dense attention.

    Every method sees the same prompts. Under torchrun the cells are shared by its processes; times
    are then taken by a second, short run with --timing-pass. --recall-pass measures which part of
    the attention the methods keep, of further methods too, and scores nothing.

    \b
    Examples:
      sp-run eval --model M --profile P --method "plan,flexprefill:gamma={0.8,0.9}" \
        --task niah_single_1,vt --length 4096,8192 --samples 25 -o out
      sp-run eval --model M --profile P --config eval.toml -o out
      sp-run eval --report-only -o out
    """
    if plot:
        _require_matplotlib()
    if not report_only:
        if model is None:
            raise UsageError("no model was given", hint="pass --model, or --report-only")
        request = _request(model, **options)
        join_group(output)
        from sp_profile.eval.runner import evaluate as run

        with output.progress("eval", "steps") as bar:
            outcome = run(
                request, target, progress=lambda what, done, total: bar(done, total, what)
            )
        if request.prepare_only:
            output.document({"schema": "sp.eval_prepared", "folder": str(target)})
            output.line(f"prepared {target}")
        if outcome.evaluation is None:
            return
        if outcome.stopped:
            output.warn("stopped at --max-seconds; run the same command again to go on")
    _report(output, target, reference, plot)


def _report(output: Output, target: Path, reference: str | None, plot: bool | None) -> None:
    """Results, table and plot of what is finished."""
    import json

    from sp_profile.eval.results import make_summary, store_results
    from sp_runtime.strict_json import encode

    summary = make_summary(target, reference=reference)
    store_results(target, summary)
    output.document(json.loads(encode(summary)))
    print_summary(output, summary)
    if plot is not False:
        _plot(output, target, summary, required=plot is True)
    failed = len(summary.overview.failed)
    if failed:
        for one in summary.overview.failed:
            message = f"{one.method} on {one.task} at {one.length}: {one.reason}"
            hint = "try --dtype bfloat16 or float32"
            output.failure(Failure(exit_code=1, code="FAILURE", message=message, hint=hint))
        raise PartialFailure(failed=failed, total=failed + len(summary.overview.cells))


def _plot(output: Output, target: Path, summary: EvalSummary, *, required: bool) -> None:
    from importlib.util import find_spec

    from sp_profile.eval.folder import PLOT_NAME

    if not required and find_spec("matplotlib") is None:
        output.detail("no plot: the extra `plot` is not installed")
        return
    if not summary.overview.lengths:
        return
    from sp_profile.figures.pareto import plot_pareto

    plot_pareto(target / PLOT_NAME, summary)
    output.info(f"plot: {target / PLOT_NAME}")


def _require_matplotlib() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise UsageError(
            "a plot needs matplotlib", hint="pip install 'sparse-prefill[plot]', or --no-plot"
        )


def _request(model: str, profiles: tuple[str, ...], **options: Any) -> EvalRequest:
    from sp_profile.eval.request import EvalRequest
    from sp_profile.tasks import TaskData

    files = {name: options.pop(f"data_{name}") for name in (*_DATA, "prompts")}
    data = TaskData(**files)
    workers = options.pop("workers")
    return EvalRequest(
        model=model,
        profiles=_profiles(profiles),
        data=data,
        workers=len(os.sched_getaffinity(0)) if workers is None else workers,
        **options,
    )


def _profiles(texts: tuple[str, ...]) -> tuple[tuple[str, Path], ...]:
    """(name, folder) of each; the first one is the default and has no name of its own."""
    named: dict[str, Path] = {}
    for text in texts:
        name, sign, path = text.partition("=")
        key, folder = (name, Path(path)) if sign else ("", Path(text))
        if key in named or (sign and not name.isidentifier()):
            raise UsageError(
                f"--profile {text}: {'named twice' if key in named else 'not a name'}",
                hint="one without a name, the others as NAME=PATH",
            )
        named[key] = folder
    if named and "" not in named:
        named = {"": next(iter(named.values())), **named}
    return tuple(named.items())
