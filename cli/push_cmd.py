"""`sp-profile push`: publish a profile in a repository of the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import Findings, profile_argument, with_output
from .output import Output

if TYPE_CHECKING:
    from sp_profile.hub import PushPlan, PushResult


@click.command()
@profile_argument
@click.argument("target", metavar="OWNER/NAME")
@click.option("--private", is_flag=True, help="Make the repository private where it is made.")
@click.option("--branch", metavar="NAME", help="Branch; made where there is none.")
@click.option("--message", metavar="TEXT", help="Of the commit.")
@click.option("--license", metavar="ID", help="For the card, such as apache-2.0.")
@click.option("--base-model", metavar="OWNER/NAME", help="The model on the hub, for the card.")
@click.option("--dry-run", is_flag=True, help="Verify, say what would be uploaded, send nothing.")
@with_output
def push(
    output: Output,
    profile: Path,
    target: str,
    private: bool,
    branch: str | None,
    message: str | None,
    license: str | None,
    base_model: str | None,
    dry_run: bool,
) -> None:
    """Publish PROFILE on the Hugging Face Hub.

    It goes into the repository OWNER/NAME[@BRANCH], with a card made from it. It is verified
    first, as by `sp-profile verify`; exit code 5 where a check falls short.
    Only the files of the profile are uploaded, in one commit. The license is yours to choose. Signs
    in as huggingface_hub does: `hf auth login`, or HF_TOKEN.

    \b
    Examples:
      sp-profile push profiles/smol me/smol-profile --license apache-2.0 --dry-run
      sp-profile push profiles/smol me/smol-profile --private --message "first profile"
    """
    from sp_profile.hub import plan_push
    from sp_profile.hub import push as upload

    plan = plan_push(
        profile, target, branch=branch, message=message, license=license, base_model=base_model
    )
    refused = bool(plan.findings)
    done = None if dry_run or refused else upload(plan, private=private)
    _tell(output, plan, done, private=private)
    if refused:
        raise Findings(len(plan.findings))


def _tell(output: Output, plan: PushPlan, done: PushResult | None, *, private: bool) -> None:
    load = f'load_profile("{plan.place}")'
    output.document(
        {
            "schema": "sp.push",
            "repo": plan.place.repo,
            "branch": plan.place.revision or "main",
            "folder": plan.place.subfolder,
            "private": private,
            "profile_id": plan.profile.profile_id,
            "message": plan.message,
            "pushed": done is not None,
            "files": [{"name": file.name, "bytes": file.size} for file in plan.files],
            "left_out": list(plan.left_out),
            "findings": [{"name": check.name, "detail": check.detail} for check in plan.findings],
            "url": None if done is None else done.url,
            "commit": None if done is None else done.commit,
            "removed": [] if done is None else list(done.removed),
            "load": load,
        }
    )
    for check in plan.findings:
        output.line(f"NO  {check.name}: {check.detail}")
    if plan.findings:
        return
    output.line(f"profile {plan.profile.profile_id}")
    output.table(("file", "bytes"), [(file.name, f"{file.size:,}") for file in plan.files])
    if plan.left_out:
        output.info(f"left out, no part of a profile: {', '.join(map(ascii, plan.left_out))}")
    if done is None:
        output.line(f"dry run: {len(plan.checks)} checks passed, nothing was sent to {plan.place}")
        return
    for name in done.removed:
        output.info(f"removed from the repository: {name}")
    output.line(f"pushed {done.url} ({done.commit[:12]})")
    output.line(f"load   {load}")
    output.line(f"       sp-run prefill --model MODEL --profile {plan.place} prompt.txt")
