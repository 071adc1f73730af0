"""`completion`: the script that makes a shell complete the words of both programs."""

from __future__ import annotations

import os

import click
from click.shell_completion import get_completion_class, shell_complete

SHELLS = ("bash", "zsh", "fish")


def complete_variable(program: str) -> str:
    """The variable by which the shell's script asks `program` for completions."""
    return f"_{program.replace('-', '_').upper()}_COMPLETE"


def answer_shell(group: click.Group, program: str) -> int | None:
    """The exit code of a question by the shell's script; None where it asked none."""
    variable = complete_variable(program)
    question = os.environ.get(variable)
    return shell_complete(group, {}, program, variable, question) if question else None


def completion_command(program: str) -> click.Command:
    """The command `completion` of `program`."""
    return click.Command(
        "completion",
        params=[click.Argument(["shell"], type=click.Choice(SHELLS))],
        callback=_print_script,
        help=_HELP.replace("PROGRAM", program),
    )


def _print_script(shell: str) -> None:
    root = click.get_current_context().find_root().command
    program = root.name or ""
    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(root, {}, program, complete_variable(program)).source(), nl=False)


_HELP = """Print the script that lets SHELL complete words.

Commands, options, and names of models, profiles, methods and tasks.

\b
~/.bashrc:  eval "$(PROGRAM completion bash)"
~/.zshrc:   eval "$(PROGRAM completion zsh)"
fish:       PROGRAM completion fish > ~/.config/fish/completions/PROGRAM.fish

\b
Examples:
  PROGRAM completion bash
  PROGRAM completion fish
"""
