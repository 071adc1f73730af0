"""`sp-profile calibrate`: measure a model on prompts into a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sp_runtime.errors import UsageError

from .errors import RESOURCES, explain
from .options import (
    PartialFailure,
    device_option,
    dtype_option,
    join_group,
    keep_going_option,
    kernels_option,
    model_option,
    revision_option,
    trust_option,
    with_output,
)
from .output import Output

if TYPE_CHECKING:
    from sp_profile.calibrate import RunSummary
    from sp_profile.dry_run import DryRun


@click.command()
@model_option
@revision_option
@click.option(
    "--prompts", multiple=True, metavar="PATH",
    help="A .txt or .jsonl file, a folder of them, or -; repeatable. Built-in tasks if left out.",
)  # fmt: skip
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="Built-in task; repeatable.")
@click.option(
    "--length", "lengths", multiple=True, type=int, metavar="N",
    help="Tokens of built-in prompts; repeatable (1024 and 2048).",
)  # fmt: skip
@click.option("--samples", type=int, help="Built-in prompts of each task and length (1).")
@dtype_option
@device_option
@click.option("--block-size", type=int, help="64 or 128 tokens; by prompt length if left out.")
@click.option("--gamma", type=float, default=0.9, show_default=True, help="Attention mass kept.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the built-in prompts.")
@click.option(
    "--chat-template/--no-chat-template",
    default=None,
    help="Make each prompt a user turn; on where the model has a template.",
)
@click.option("--min-budget", type=int, help="Least tokens of vertical-slash; by prompt length.")
@click.option("--max-budget", type=int, help="Most tokens of vertical-slash; no bound.")
@click.option(
    "--sample-stride", type=int, default=8, show_default=True, help="Of the sampled masks."
)
@click.option(
    "--max-bad-share", type=float, default=0.1, show_default=True,
    help="Largest share of prompts with attention that is not finite.",
)  # fmt: skip
@kernels_option
@trust_option
@keep_going_option
@click.option(
    "--dry-run",
    "dry",
    is_flag=True,
    help="Say what the run would take: time, disk and memory. Exit 6 if it does not fit.",
)
@click.option(
    "-o", "--output", "target", required=True, type=click.Path(path_type=Path),
    help="Run folder; the same command resumes an interrupted run.",
)  # fmt: skip
@with_output
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
    """Record which blocks each attention head of a model needs, prompt by prompt."""
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
