"""`sp-profile`: measure a model once and write its profile."""

from __future__ import annotations

from typing import NoReturn

import click

from sp_runtime.version import __version__

from .calibrate_cmd import calibrate
from .cluster_cmd import cluster
from .options import CONTEXT_SETTINGS
from .options import main as run_group
from .show_cmd import show


@click.group(context_settings=CONTEXT_SETTINGS)
@click.version_option(__version__, prog_name="sp-profile")
def cli() -> None:
    """Measure which attention heads of a model look alike, and write a profile.

    \b
    Example:
      sp-profile calibrate --model smollm2-135m -o runs/smol
      sp-profile cluster runs/smol -o profiles/smol
      sp-profile show profiles/smol
    """


cli.add_command(calibrate)
cli.add_command(cluster)
cli.add_command(show)


def main() -> NoReturn:
    """Console script."""
    run_group(cli, "sp-profile")
