"""`sp-profile verify`: whether a profile is whole, and whether it does its model harm."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sp_runtime.errors import UsageError

from .completers import complete_task
from .options import (
    Findings,
    device_option,
    kernels_option,
    lengths_option,
    number_option,
    optional_dtype_option,
    optional_model_option,
    profile_argument,
    public_key_option,
    revision_option,
    seed_option,
    trust_option,
    weights_option,
    with_output,
    words_option,
)
from .output import Output

if TYPE_CHECKING:
    from sp_profile.verify_types import ModelCheck, VerifyReport

_LIMITS = ("max_kl", "min_top1", "max_answers_lost", "recall_slack", "max_heads_under")


@click.command()
@profile_argument
@public_key_option
@optional_model_option("Run held-out prompts: alias, folder, hub id or .gguf file.")
@revision_option
@words_option(
    "--task", name="tasks", shell_complete=complete_task,
    help_text="Built-in tasks: repeat it, or use commas (all).",
)  # fmt: skip
@lengths_option(help_text="Tokens of a prompt: repeatable (the longest of the calibration).")
@number_option("--samples", int, "Prompts of each task and length (1).")
@seed_option("Of the held-out prompts (1).", default=None)
@click.option("--point", metavar="NAME", help="Operating point of the profile (default).")
@optional_dtype_option("Of weights and activations; the calibration's if left out.")
@device_option
@kernels_option
@trust_option
@weights_option
@number_option("--max-kl", float, "Mean KL to dense, nats (0.25).")
@number_option("--min-top1", float, "Share of equal top tokens (0.8).")
@number_option("--max-answers-lost", float, "Share of dense's (0.1).")
@number_option("--recall-slack", float, "Under the plan's floor (0.05).")
@number_option("--max-heads-under", float, "Share of heads lower (0.02).")
@with_output(config=True, progress=True)
def verify(
    output: Output, profile: Path, public_key: str | None, model: str | None, **options: Any
) -> None:
    """Check that PROFILE is whole, and does its model no harm.

    Structure, hashes, ranges, tables against each other. With --model, held-out built-in prompts
    too: agreement with dense attention, answers, and each head's recall against the floor of the
    plan. Exit code 4 for a corrupt profile, 5 where something falls short.

    \b
    Examples:
      sp-profile verify profiles/smollm2-135m
      sp-profile verify profiles/smollm2-135m --model smollm2-135m --max-kl 0.3
      sp-profile verify profiles/smollm2-135m --public-key minisign.pub
    """
    from sp_profile.profile_input import read_profile
    from sp_profile.verify import ModelCheckConfig, VerifyLimits, judge_model, verify_folder
    from sp_runtime.profile_source import find_profile

    given = {
        name: value
        for name, value in options.items()
        if value not in (None, ()) and value is not False
    }
    limits = VerifyLimits(**{name: given.pop(name) for name in _LIMITS if name in given})
    if model is None:
        given.pop("kernels", None)
        if given:
            name = {"tasks": "task", "lengths": "length"}.get(first := next(iter(given)), first)
            flag = name.replace("_", "-")
            raise UsageError(f"--{flag} is about a model", hint="say --model too")
    file = find_profile(profile, tables=True)
    loaded = read_profile(file, public_key)
    report = verify_folder(file, loaded, signed=None if public_key is None else True)
    if model is not None:
        from sp_profile.verify_model import check_model

        config = ModelCheckConfig(model=model, **given)
        with output.progress("verify", "prompts") as progress:
            found = check_model(loaded, config, progress=progress)
        checks = (*report.checks, *judge_model(found, limits))
        report = dataclasses.replace(report, checks=checks, model=found)
    _tell(output, report)
    if report.findings:
        raise Findings(len(report.findings))


def _tell(output: Output, report: VerifyReport) -> None:
    document = dataclasses.asdict(report)
    passed = not report.findings
    output.document({"schema": "sp.verify", "passed": passed, **document})
    output.line(f"profile {report.profile_id}")
    rows = [(check.name, "ok" if check.passed else "NO", check.detail) for check in report.checks]
    output.table(("check", "", "found"), rows, left=(0, 1, 2))
    if report.model is not None:
        _print_model(output, report.model)
    output.line("passed" if passed else f"{len(report.findings)} of {len(rows)} checks fell short")


def _print_model(output: Output, found: ModelCheck) -> None:
    output.line()
    output.line(f"held-out prompts at point {found.point}")
    rows = [
        (
            prompt.prompt,
            f"{prompt.density:.3f}",
            f"{prompt.kl_mean:.4f}",
            f"{prompt.kl_last:.4f}",
            f"{100 * prompt.top1:.1f} %",
            "right" if prompt.dense_right else "wrong",
            "right" if prompt.sparse_right else "wrong",
        )
        for prompt in found.prompts
    ]
    columns = ("prompt", "density", "KL", "KL last", "top-1", "dense", "sparse")
    output.table(columns, rows, left=(0, 5, 6))
    output.line("KL of dense to sparse in nats, mean over positions and at the last one")
    if found.recall_floor is None:
        return
    output.line()
    kinds: dict[str, list[float]] = {}
    for head in found.recall:
        kinds.setdefault(head.assignment, []).append(head.recall)
    means = [
        (kind, str(len(recalls)), f"{sum(recalls) / len(recalls):.3f}", f"{min(recalls):.3f}")
        for kind, recalls in sorted(kinds.items(), key=lambda item: -len(item[1]))
    ]
    output.table(("assignment", "heads", "mean recall", "lowest"), means)
