"""`sp-profile`: measure a model once and write its profile."""

from __future__ import annotations

from typing import NoReturn

import click

from .calibrate_cmd import calibrate
from .cluster_cmd import cluster
from .completion_cmd import completion_command
from .curves_cmd import curves
from .diff_cmd import diff
from .import_cmd import import_command
from .migrate_cmd import migrate
from .options import CONTEXT_SETTINGS
from .plan_cmd import plan
from .program import Program
from .push_cmd import push
from .report_cmd import report
from .runner import main as run_group
from .search_cmd import search
from .show_cmd import show
from .sign_cmd import sign
from .tune_cmd import tune
from .verify_cmd import verify


@click.group(name="sp-profile", cls=Program, context_settings=CONTEXT_SETTINGS)
def cli() -> None:
    """Measure which attention heads of a model look alike, and write a profile.

    \b
    Examples:
      sp-profile calibrate --model smollm2-135m -o runs/smol
      sp-profile cluster runs/smol -o profiles/smol
      sp-profile show profiles/smol
    """


cli.add_command(calibrate)
cli.add_command(cluster)
cli.add_command(curves)
cli.add_command(plan)
cli.add_command(tune)
cli.add_command(show)
cli.add_command(report)
cli.add_command(import_command)
cli.add_command(search)
cli.add_command(verify)
cli.add_command(diff)
cli.add_command(migrate)
cli.add_command(sign)
cli.add_command(push)
cli.add_command(completion_command("sp-profile"))


def main() -> NoReturn:
    """Console script."""
    run_group(cli, "sp-profile")


if __name__ == "__main__":
    main()
