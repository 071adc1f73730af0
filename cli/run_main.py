"""`sp-run`: prefill prompts with a profile."""

from __future__ import annotations

from typing import NoReturn

import click

from .bench_cmd import bench
from .completion_cmd import completion_command
from .env_cmd import env
from .eval_cmd import evaluate
from .options import CONTEXT_SETTINGS
from .prefill_cmd import prefill
from .program import Program
from .runner import main as run_group


@click.group(name="sp-run", cls=Program, context_settings=CONTEXT_SETTINGS)
def cli() -> None:
    """Prefill long prompts with block-sparse attention.

    \b
    Examples:
      sp-run prefill --model smollm2-135m --profile profiles/smol prompts/*.txt --compare dense
      sp-run eval --model M --profile P --task retrieval --length 4096,8192 -o out
      sp-run env
    """


cli.add_command(prefill)
cli.add_command(evaluate)
cli.add_command(env)
cli.add_command(bench)
cli.add_command(completion_command("sp-run"))


def main() -> NoReturn:
    """Console script."""
    run_group(cli, "sp-run")


if __name__ == "__main__":
    main()
