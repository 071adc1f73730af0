"""Options that several commands share, and the entry point that turns errors into exit codes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from .errors import (
    BROKEN_PIPE,
    FAILURE,
    FINDINGS,
    OK,
    USAGE,
    Failure,
    Terminated,
    explain,
    report_traceback,
)
from .output import Output

if TYPE_CHECKING:
    from sp_profile.run_group import RunGroup

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
Command = TypeVar("Command", bound=Callable[..., Any])
_RANK = "sp.rank"  # where a command leaves its rank for `run`

model_option = click.option(
    "--model",
    required=True,
    metavar="NAME",
    help="Alias (smollm2-135m), folder, hub id or .gguf file.",
)
revision_option = click.option("--revision", metavar="REV", help="Revision of a hub model.")
dtype_option = click.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Type that weights and activations are held in.",
)
device_option = click.option(
    "--device", metavar="DEVICE", help="cpu, cuda or cuda:N; cuda where there is one."
)
kernels_option = click.option(
    "--kernels",
    type=click.Choice(["auto", "triton", "reference"]),
    default="auto",
    show_default=True,
    help="Kernel backend; an explicit one never falls back.",
)
trust_option = click.option(
    "--trust-remote-code", is_flag=True, help="Run Python code that the model's repository ships."
)
keep_going_option = click.option(
    "--keep-going", is_flag=True, help="Report a prompt that cannot be used and go on to the next."
)
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace an existing output.")
json_option = click.option("--json", "json_mode", is_flag=True, help="Print one JSON document.")
verbose_option = click.option("-v", "--verbose", is_flag=True, help="Tell more.")
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Tell nothing but the result.")


def with_output(command: Command) -> Command:
    """Add --json, -v and -q, and pass an `Output` as the first argument."""

    @wraps(command)
    def wrapper(*, json_mode: bool, verbose: bool, quiet: bool, **options: Any) -> Any:
        output = Output(json_mode=json_mode, verbosity=int(verbose) - int(quiet))
        return command(output, **options)

    return json_option(verbose_option(quiet_option(wrapper)))  # type: ignore[return-value]


def join_group(output: Output) -> RunGroup:
    """The group of processes that torchrun made this one a part of; only its first one speaks."""
    from sp_profile.run_group import current_group

    group = current_group()
    output.rank = click.get_current_context().meta[_RANK] = group.rank
    return group


class PartialFailure(Exception):
    """Some prompts failed under --keep-going; the result and its errors are already printed."""

    def __init__(self, *, failed: int, total: int) -> None:
        super().__init__(f"{failed} of {total} prompts failed")


class Findings(Exception):
    """What was checked fell short; the result and its findings are already printed."""

    def __init__(self, count: int) -> None:
        super().__init__(f"{count} finding{'s' if count > 1 else ''}")


def run(group: click.Group, argv: Sequence[str], program: str | None = None) -> int:
    """Run a command line and return its exit code; every error ends in the table of `errors`."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    signal.signal(signal.SIGTERM, _terminate)
    output = Output(json_mode=_asks_for_json(argv))
    meta: dict[str, Any] = {}
    try:
        # Not group.main, which has ways of its own with closed pipes and interruptions.
        with group.make_context(program or group.name, list(argv)) as context:
            meta = context.meta
            group.invoke(context)
        sys.stdout.flush()
        return OK
    except click.exceptions.Exit as end:
        sys.stdout.flush()
        return end.exit_code
    except PartialFailure as error:
        output.rank = meta.get(_RANK, 0)
        output.warn(str(error))
        return FAILURE
    except Findings as error:
        output.warn(str(error))
        sys.stdout.flush()
        return FINDINGS
    except BrokenPipeError:
        _close_stdout()
        return BROKEN_PIPE
    except click.exceptions.NoArgsIsHelpError as error:
        sys.stderr.write(error.format_message() + "\n")
        return USAGE
    except (Exception, KeyboardInterrupt, Terminated) as error:
        # The process boundary: the only place that catches everything.
        failure = _explain(error)
        report_traceback()
        output.rank = meta.get(_RANK, 0)
        try:
            output.error_document(failure)
            output.failure(failure)
            sys.stdout.flush()
        except BrokenPipeError:
            _close_stdout()
        return failure.exit_code


def main(group: click.Group, program: str) -> NoReturn:
    """The body of the console script `program`."""
    sys.exit(run(group, sys.argv[1:], program))


def _explain(error: BaseException) -> Failure:
    if isinstance(error, click.Abort):
        return explain(KeyboardInterrupt())
    if isinstance(error, click.ClickException):
        context = getattr(error, "ctx", None)
        hint = None if context is None else f"try: {context.command_path} --help"
        message = " ".join(error.format_message().split())
        return Failure(exit_code=error.exit_code, code="USAGE", message=message, hint=hint)
    return explain(error)


def _asks_for_json(argv: Sequence[str]) -> bool:
    options = argv[: argv.index("--")] if "--" in argv else argv
    return "--json" in options


def _close_stdout() -> None:
    """Keep the interpreter from writing to the closed pipe once more at exit."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated
