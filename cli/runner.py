"""The entry point of both programs: every error ends in the table of `errors` as an exit code."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any, NoReturn

import click

from .completion_cmd import answer_shell
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
from .options import RANK, Findings, PartialFailure
from .output import Output


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
        output.rank = meta.get(RANK, 0)
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
        output.rank = meta.get(RANK, 0)
        try:
            output.error_document(failure)
            output.failure(failure)
            sys.stdout.flush()
        except BrokenPipeError:
            _close_stdout()
        return failure.exit_code


def main(group: click.Group, program: str) -> NoReturn:
    """The body of the console script `program`."""
    answered = answer_shell(group, program)
    sys.exit(run(group, sys.argv[1:], program) if answered is None else answered)


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
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise Terminated
