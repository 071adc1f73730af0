"""`sp-run`: prefill prompts with a profile."""

from __future__ import annotations

from typing import NoReturn

import click

from sp_runtime.version import __version__

from .bench_cmd import bench
from .env_cmd import env
from .eval_cmd import evaluate
from .options import CONTEXT_SETTINGS
from .options import main as run_group
from .prefill_cmd import prefill


@click.group(context_settings=CONTEXT_SETTINGS)
@click.version_option(__version__, prog_name="sp-run")
def cli() -> None:
    """Prefill long prompts with block-sparse attention.

    \b
    Example:
      sp-run prefill --model smollm2-135m --profile profiles/smol prompts/*.txt --compare dense
      sp-run env
    """


cli.add_command(prefill)
cli.add_command(evaluate)
cli.add_command(env)
cli.add_command(bench)


def main() -> NoReturn:
    """Console script."""
    run_group(cli, "sp-run")
