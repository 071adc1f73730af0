"""`sp-profile calibrate`: measure a model on prompts into a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sp_runtime.errors import UsageError

from .completers import complete_task
from .errors import RESOURCES, explain
from .options import (
    PartialFailure,
    block_size_option,
    chat_template_option,
    device_option,
    dtype_option,
    join_group,
    keep_going_option,
    kernels_option,
    lengths_option,
    model_option,
    number_option,
    output_option,
    revision_option,
    seed_option,
    trust_option,
    with_output,
    words_option,
)
from .output import Output

if TYPE_CHECKING:
    from sp_profile.calibrate import RunSummary
    from sp_profile.calibration_config import CalibrationConfig
    from sp_profile.dry_run import DryRun


@click.command()
@model_option
@revision_option
@click.option(
    "--prompts", multiple=True, metavar="PATH",
    help="A .txt or .jsonl file, a folder of them, or -; repeatable. Built-in tasks if left out.",
)  # fmt: skip
@words_option(
    "--task", name="tasks", shell_complete=complete_task,
    help_text="Built-in tasks: repeat it, or use commas (all).",
)  # fmt: skip
@lengths_option(help_text="Tokens of built-in prompts: repeat it, or use commas (1024,2048).")
@number_option("--samples", int, "Built-in prompts of each task and length (1).")
@dtype_option
@device_option
@block_size_option("64 or 128 tokens; by prompt length if left out.")
@number_option(
    "--gamma", float, "Share of the attention mass that a block mask keeps, in (0, 1].", default=0.9
)
@seed_option("Of the built-in prompts.")
@chat_template_option("Make each prompt a user turn; on where the model has a template.")
@number_option("--min-budget", int, "Least tokens of vertical-slash; by prompt length if left out.")
@number_option("--max-budget", int, "Most tokens of vertical-slash; no bound if left out.")
@number_option(
    "--sample-stride", int, "Every how many queries of a block the sampled masks see.", default=16
)
@number_option(
    "--local-blocks",
    int,
    "Key blocks before the diagonal that masks of block mass always keep.",
    default=1,
)
@number_option(
    "--row-slack",
    float,
    "Sampled masks: what a block row may miss, over what its head may; 1: rows by themselves.",
    default=2.0,
)
@click.option(
    "--peers",
    is_flag=True,
    help="Measure flexprefill and xattention too, so that curves and plans stand beside them.",
)
@number_option(
    "--max-bad-share",
    float,
    "Largest share of prompts with attention that is not finite.",
    default=0.1,
)
@kernels_option
@trust_option
@keep_going_option
@click.option(
    "--dry-run",
    "dry",
    is_flag=True,
    help="Say what the run would take: time, disk and memory. Exit 6 if it does not fit.",
)
@output_option("Run folder; the same command resumes an interrupted run.")
@with_output(config=True, progress=True)
def calibrate(
    output: Output,
    target: Path,
    prompts: tuple[str, ...],
    tasks: tuple[str, ...],
    lengths: tuple[int, ...],
    samples: int | None,
    device: str | None,
    dry: bool,
    **options: Any,
) -> None:
    """Measure which blocks every attention head needs.

    \b
    Examples:
      sp-profile calibrate --model smollm2-135m -o runs/smol
      sp-profile calibrate --model Qwen/Qwen3-0.6B --dtype bfloat16 --length 8192,32768 -o runs/qwen
      sp-profile calibrate --model smollm2-135m --prompts prompts/ -o runs/own
      sp-profile calibrate --model smollm2-135m -o runs/smol --dry-run
    """
    if prompts and (tasks or lengths or samples is not None):
        raise UsageError(
            "--task, --length and --samples describe built-in prompts, and --prompts your own",
            hint="give one kind; a run with both would not say what it measured",
        )
    from sp_profile.calibration_config import CalibrationConfig

    # Options left out keep the configuration's own defaults.
    built_in = {"tasks": tasks or None, "lengths": lengths or None, "samples": samples}
    chosen: dict[str, Any] = {key: value for key, value in built_in.items() if value is not None}
    config = CalibrationConfig(prompts=prompts, device=device or "auto", **options, **chosen)
    group = join_group(output)
    _warn_of_short_prompts(output, config)
    if dry:
        from sp_profile.dry_run import dry_run

        _tell_needs(output, target, dry_run(config, target, group=group))
        return
    from sp_profile.calibrate import calibrate as measure

    output.info(f"calibrating {config.model} into {target}")
    with output.progress("calibrate", "prompts") as progress:
        summary = measure(
            config, target, group=group, progress=lambda done, total, label: progress(done, total)
        )
    _tell(output, summary)
    if summary.problems:
        failed = len(summary.problems)
        raise PartialFailure(failed=failed, total=failed + summary.total)


def _warn_of_short_prompts(output: Output, config: CalibrationConfig) -> None:
    """Built-in prompts so short that no profile comes of them; others are not read yet."""
    from sp_profile.similarity import MIN_BLOCK_ROWS

    longest = max(config.lengths)
    least = (MIN_BLOCK_ROWS - 1) * config.resolve_block_size(longest) + 1
    if not config.prompts and longest < least:
        output.warn(f"sp-profile cluster will refuse this run: it needs prompts of {least} tokens")


def _tell(output: Output, summary: RunSummary) -> None:
    config = summary.config
    failures = [explain(problem) for problem in summary.problems]
    lengths = sorted(prompt.tokens for prompt in config.prompts)
    output.document(
        {
            "schema": "sp.calibrate",
            "run": str(summary.path),
            "prompts": summary.total,
            "measured": summary.measured,
            "resumed": summary.resumed,
            "duplicates": summary.duplicates,
            "quarantined": [
                {"prompt": entry.unit, "reason": entry.reason} for entry in summary.quarantined
            ],
            "tokens": lengths,
            "block_size": config.block_size,
            "gamma": config.gamma,
            "min_budget": config.settings.min_budget,
            "dtype": config.dtype,
            "device": config.device,
            "kernels": config.kernels,
            "chat_template": config.chat_template,
            "errors": [
                {"code": each.code, "message": each.message, "hint": each.hint} for each in failures
            ],
        }
    )
    heads = len(config.fingerprint.full_layers) * config.fingerprint.num_heads
    output.line(
        f"run {summary.path}: {summary.total} prompts of {lengths[0]} to {lengths[-1]} tokens, "
        f"{heads} heads"
    )
    output.line(
        f"measured {summary.measured}, resumed {summary.resumed}; block {config.block_size}, "
        f"gamma {config.gamma:g}, {config.dtype}, {config.kernels} kernels on {config.device}"
    )
    if summary.duplicates:
        output.warn(f"{summary.duplicates} duplicate prompts were left out")
    for entry in summary.quarantined:
        output.warn(f"prompt {entry.unit[:12]} is quarantined: {entry.reason}")
    for failure in failures:
        output.failure(failure)
    output.info(f"next: sp-profile cluster {summary.path} -o PROFILE")


def _tell_needs(output: Output, target: Path, needs: DryRun) -> None:
    config, memory = needs.run, needs.memory
    output.document(
        {
            "schema": "sp.calibrate_dry_run",
            "run": str(target),
            "fits": not needs.missing,
            "missing": list(needs.missing),
            "prompts": needs.prompts,
            "resumed": needs.resumed,
            "tokens": needs.tokens,
            "longest": needs.longest,
            "block_size": config.block_size,
            "dtype": config.dtype,
            "device": config.device,
            "kernels": config.kernels,
            "processes": needs.processes,
            "seconds": needs.seconds,
            "seconds_measured_at_tokens": list(needs.probes),
            "disk_bytes": needs.disk,
            "disk_free_bytes": needs.disk_free,
            "memory_bytes": memory.total,
            "memory_weights_bytes": memory.weights,
            "memory_activations_bytes": memory.activations,
            "memory_recording_bytes": memory.recording,
            "memory_free_bytes": needs.memory_free,
        }
    )
    output.line(
        f"prompts  {needs.prompts} of {needs.tokens} tokens, the longest of {needs.longest}; "
        f"{needs.resumed} are finished"
    )
    if needs.seconds is not None:
        probes = " and ".join(str(tokens) for tokens in needs.probes)
        output.line(
            f"time     {needs.seconds:.0f} s on {needs.processes} x {config.device}, continued "
            f"from forwards of {probes} tokens"
        )
    output.line(f"disk     {_gib(needs.disk)} at the most, {_gib(needs.disk_free)} free")
    output.line(
        f"memory   {_gib(memory.total)}: weights {_gib(memory.weights)}, activations "
        f"{_gib(memory.activations)}, recording {_gib(memory.recording)}; "
        f"{_gib(needs.memory_free)} free"
    )
    for problem in needs.missing:
        output.warn(problem)
    if needs.missing:
        raise click.exceptions.Exit(RESOURCES)


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.3f} GiB"
