"""The one table from an exception to an exit code, a message and a hint."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from dataclasses import dataclass

from sp_runtime.errors import SpError

OK = 0
FAILURE = 1
USAGE = 2
MISMATCH = 3
CORRUPT = 4
FINDINGS = 5
RESOURCES = 6
LOCKED = 7
INTERRUPTED = 130
BROKEN_PIPE = 141
TERMINATED = 143

_EXIT_OF_CODE = {
    "FAILURE": FAILURE,
    "USAGE": USAGE,
    "UNSUPPORTED": USAGE,
    "PROFILE_MISMATCH": MISMATCH,
    "CORRUPT_ARTEFACT": CORRUPT,
    "RESOURCES": RESOURCES,
    "FOLDER_LOCKED": LOCKED,
}
# What to try where the error itself does not say.
_HINTS = {
    "PROFILE_MISMATCH": "`sp-profile show PROFILE` names its model; calibrate this one instead",
    "CORRUPT_ARTEFACT": "copy it again from where it came, or make it anew; "
    "`sp-profile verify PROFILE` names what is amiss in a profile",
    "FOLDER_LOCKED": "wait for that process, or name another output folder",
    "UNSUPPORTED": "`sp-run env` says what runs here",
}
_MEMORY_HINT = "use a shorter prompt, --chunk-size, --dtype bfloat16 or a machine with more memory"


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """What a command that failed tells: `code` is stable, `exit_code` is the process's."""

    exit_code: int
    code: str
    message: str
    hint: str | None = None


class Terminated(BaseException):
    """SIGTERM, raised in the main thread so that temporary files are removed on the way out."""


def explain(error: BaseException) -> Failure:
    """The failure that `error` stands for."""
    if isinstance(error, SpError):
        exit_code = _EXIT_OF_CODE.get(error.code, FAILURE)
        hint = error.hint or _HINTS.get(error.code)
        return Failure(exit_code=exit_code, code=error.code, message=error.message, hint=hint)
    if isinstance(error, KeyboardInterrupt):
        return Failure(
            exit_code=INTERRUPTED,
            code="INTERRUPTED",
            message="interrupted",
            hint="run the same command again to resume (calibrate, eval, prefill -o)",
        )
    if isinstance(error, Terminated):
        return Failure(exit_code=TERMINATED, code="TERMINATED", message="terminated by a signal")
    if _is_out_of_memory(error):
        return Failure(
            exit_code=RESOURCES, code="RESOURCES", message="out of memory", hint=_MEMORY_HINT
        )
    if isinstance(error, OSError):
        return _explain_os_error(error)
    if _is_of_the_device(error):
        return Failure(
            exit_code=FAILURE,
            code="DEVICE",
            message=_one_line(f"the device failed: {str(error).splitlines()[0]}"),
            hint="its state is unknown, so the process ends; the same command resumes",
        )
    return Failure(
        exit_code=FAILURE,
        code="INTERNAL",
        message=_one_line(f"{type(error).__name__}: {error}"),
        hint="this is a defect of the program; SP_DEBUG=1 shows where it comes from",
    )


def report_traceback() -> None:
    """Print the traceback of the exception at hand, where SP_DEBUG=1 asks for it."""
    if os.environ.get("SP_DEBUG") == "1":
        traceback.print_exc(file=sys.stderr)


def _explain_os_error(error: OSError) -> Failure:
    where = f"{error.filename}: " if error.filename is not None else ""
    message = _one_line(f"{where}{error.strerror or error}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "free some disk space, or name another output folder; nothing half-written is left"
        return Failure(exit_code=RESOURCES, code="RESOURCES", message=message, hint=hint)
    if isinstance(error, (FileNotFoundError, PermissionError, NotADirectoryError, FileExistsError)):
        hint = "check the path and its permissions"
        return Failure(exit_code=USAGE, code="USAGE", message=message, hint=hint)
    return Failure(exit_code=FAILURE, code="FAILURE", message=message)


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")  # an error of torch's means that torch is loaded
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    # torch's CPU allocator has no exception type of its own.
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def _is_of_the_device(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(error, torch.AcceleratorError)


def _one_line(text: str) -> str:
    return " ".join(text.split())
