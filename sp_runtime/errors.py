"""Typed errors of the runtime and its tools: a stable code, a message, and what to try next."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar


class SpError(Exception):
    """Base of every error a user can cause; `code` is stable, `hint` says what to try next."""

    code: ClassVar[str] = "FAILURE"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message} (hint: {self.hint})"


class UsageError(SpError, ValueError):
    """An argument, option or input file that cannot be used."""

    code = "USAGE"


class UnsupportedError(SpError, ValueError):
    """Something the runtime would compute wrongly, and therefore refuses by name."""

    code = "UNSUPPORTED"


class ProfileMismatchError(SpError):
    """A profile made for another model."""

    code = "PROFILE_MISMATCH"


class CorruptArtefactError(SpError):
    """A profile, run folder or model file that is damaged or has been altered."""

    code = "CORRUPT_ARTEFACT"


class ResourceError(SpError):
    """Memory or disk that is missing."""

    code = "RESOURCES"


class FolderLockedError(SpError):
    """An output folder that another process holds."""

    code = "FOLDER_LOCKED"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The hint `did you mean X?` with the known name most like `name`; None where none is."""
    import difflib

    found = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {found[0]}?" if found else None
