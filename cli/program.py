"""The group behind a console script: its words in environment variables, its nearest commands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import click

from sp_runtime.errors import UsageError, nearest

from .version import version_line

# How a command talks is no setting of what it does: neither a file nor a variable sets these.
TALK = frozenset({"json_mode", "verbose", "quiet", "show_config", "help", "version"})
CONFIG, PROGRESS = "config", "progress_mode"
PROGRESS_VARIABLE = "SP_PROGRESS"


class Program(click.Group):
    """A console script. Every option of its commands can come from the environment.

    The variable of `--block-size` of `sp-run prefill` is SP_RUN_PREFILL_BLOCK_SIZE.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.params.append(_version_option(self.name or ""))

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a user meets them."""
        return list(self.commands)

    def add_command(self, cmd: click.Command, name: str | None = None) -> None:
        """As click's, after giving every option its variable."""
        super().add_command(cmd, name)
        for words, command in walk(cmd, (self.name or "", name or cmd.name or "")):
            for option in settings_of(command):
                option.envvar = variable(words, option)


def walk(
    command: click.Command, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """(words, command) of `command` and of everything under it, groups before their commands."""
    yield words, command
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from walk(child, (*words, name))


def key(parameter: click.Parameter) -> str:
    """What a setting is called in a file and on the command line: the long flag, `block-size`."""
    longest = max(parameter.opts, key=len)
    flags = [flag for flag in parameter.opts if flag.startswith("--")]
    return (flags[0] if flags else longest).lstrip("-")


def settings_of(command: click.Command) -> list[click.Option]:
    """The options that a file or the environment may set."""
    return [
        parameter
        for parameter in command.params
        if isinstance(parameter, click.Option) and parameter.name not in TALK
    ]


def variable(words: tuple[str, ...], option: click.Option) -> str:
    """The environment variable of an option."""
    if option.name == PROGRESS:
        return PROGRESS_VARIABLE
    return "_".join((*words, key(option))).replace("-", "_").upper()


def command_words(context: click.Context) -> tuple[str, ...]:
    """The program and its command, such as ("sp-run", "bench", "kernel")."""
    above = () if context.parent is None else command_words(context.parent)
    root = context.find_root().command.name if context.parent is None else context.info_name
    return (*above, root or "")


def check_variables(context: click.Context, environment: Mapping[str, str]) -> None:
    """Refuse a variable that begins like those of this command and names no option: UsageError."""
    known = {str(option.envvar) for option in settings_of(context.command)}
    prefix = "_".join(command_words(context)).replace("-", "_").upper() + "_"
    for name in sorted(environment):
        if name.startswith(prefix) and name not in known:
            what = " ".join(command_words(context))
            hint = nearest(name, known) or f"unset it, or see {what} --help"
            raise UsageError(f"environment variable {name}: {what} has no such option", hint=hint)


def _version_option(program: str) -> click.Option:
    def show(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
        if wanted and not context.resilient_parsing:
            click.echo(version_line(program))
            context.exit()

    return click.Option(
        ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=show,
        help="Show the version and the git revision, and exit.",
    )  # fmt: skip
