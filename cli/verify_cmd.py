"""`sp-profile verify`: whether a profile is whole, and whether it does its model harm."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sp_runtime.errors import UsageError

from .options import Findings, device_option, kernels_option, trust_option, with_output
from .output import Output

if TYPE_CHECKING:
    from sp_profile.verify_types import ModelCheck, VerifyReport

_LIMITS = ("max_kl", "min_top1", "max_answers_lost", "recall_slack", "max_heads_under")


@click.command()
@click.argument("profile", type=click.Path(path_type=Path))
@click.option(
    "--public-key", metavar="KEY", help="minisign key (or its file) that must have signed."
)
@click.option("--model", metavar="NAME", help="Run held-out prompts: alias, folder, hub id, .gguf.")
@click.option("--revision", metavar="REV", help="Revision of a hub model.")
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="Built-in task; repeatable.")
@click.option(
    "--length", "lengths", multiple=True, type=int, metavar="N",
    help="Tokens of a prompt; repeatable (the longest of the calibration).",
)  # fmt: skip
@click.option("--samples", type=int, metavar="N", help="Prompts of each task and length (1).")
@click.option("--seed", type=int, metavar="N", help="Of the held-out prompts (1).")
@click.option("--point", metavar="NAME", help="Operating point of the profile (default).")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    help="Of weights and activations; the calibration's if left out.",
)
@device_option
@kernels_option
@trust_option
@click.option("--allow-weights-mismatch", is_flag=True, help="Accept a fine-tune of the model.")
@click.option("--max-kl", type=float, metavar="X", help="Mean KL to dense, nats (0.25).")
@click.option("--min-top1", type=float, metavar="X", help="Share of equal top tokens (0.8).")
@click.option("--max-answers-lost", type=float, metavar="X", help="Share of dense's (0.1).")
@click.option("--recall-slack", type=float, metavar="X", help="Under the plan's floor (0.05).")
@click.option("--max-heads-under", type=float, metavar="X", help="Share of heads lower (0.02).")
@with_output
def verify(
    output: Output, profile: Path, public_key: str | None, model: str | None, **options: Any
) -> None:
    """Check PROFILE: structure, hashes, ranges, tables against each other.

    With --model, held-out built-in prompts too: agreement with dense attention, answers, and each
    head's recall against the floor of the plan. Exit code 4 for a corrupt profile, 5 where
    something falls short.
    """
    from sp_profile.verify import (
        ModelCheckConfig,
        VerifyLimits,
        judge_model,
        verified_profile,
        verify_folder,
    )

    given = {name: value for name, value in options.items() if value not in (None, (), False)}
    limits = VerifyLimits(**{name: given.pop(name) for name in _LIMITS if name in given})
    if model is None:
        given.pop("kernels", None)
        if given:
            name = next(iter(given)).replace("_", "-")
            raise UsageError(f"--{name.rstrip('s')} is about a model", hint="say --model too")
    loaded = verified_profile(profile, public_key)
    report = verify_folder(profile, loaded, signed=None if public_key is None else True)
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
