"""What kinds of work folders there are, and reading one without its lock."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from sp_profile.journal import JournalEntry, read_journals
from sp_profile.run_config import first_difference
from sp_runtime.errors import CorruptArtefactError, UsageError
from sp_runtime.strict_json import decode, parse, read_bytes

CONFIG_NAME = "run.json"
_MAX_UNIT_BYTES = 1 << 30
_C = TypeVar("_C")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkKind(Generic[_C]):
    """One kind of run.

    config: the frozen dataclass of its resolved configuration; two equal ones mean the same work.
    units: the units of a configuration, each a distinct name that can be a file's.
    data, suffix: the subfolder and the suffix of the units' files.
    command: what makes and resumes such a folder, for messages.
    others: further names that the command writes there when the work is done.
    merge: what a folder that holds the first configuration becomes when the second is asked for, or
    an error; None: the two must be equal.
    """

    config: type[_C]
    units: Callable[[_C], tuple[str, ...]]
    data: str
    suffix: str
    command: str
    others: frozenset[str] = frozenset()
    merge: Callable[[_C, _C], _C] | None = None

    def file(self, folder: Path, unit: str) -> Path:
        """Where a unit's file lies."""
        return folder / self.data / f"{unit}{self.suffix}"


def is_run(path: Path) -> bool:
    """Whether a folder holds a run, of whichever kind."""
    return (path / CONFIG_NAME).is_file()


def read_work(path: Path, kind: WorkKind[_C]) -> tuple[_C, tuple[JournalEntry, ...]]:
    """The configuration and the entries, ascending by unit, of a finished or unfinished run.

    Raises UsageError if there is no run, CorruptArtefactError.
    """
    config = read_config(path, kind)
    entries = read_journals(path)
    check_units(path, kind.units(config), entries)
    return config, tuple(entries[unit] for unit in sorted(entries))


def read_unit(path: Path, kind: WorkKind[Any], entry: JournalEntry) -> bytes:
    """A finished unit's file, checked against its journal entry; CorruptArtefactError."""
    file = kind.file(path, entry.unit)
    try:
        if file.stat().st_size != entry.bytes or entry.bytes > _MAX_UNIT_BYTES:
            raise CorruptArtefactError(f"{file}: size differs from the journal's")
        data = file.read_bytes()
    except OSError as error:
        raise CorruptArtefactError(f"{file}: cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise CorruptArtefactError(
            f"{file}: SHA-256 differs from the journal's",
            hint=f"delete it and run the same {kind.command} command again",
        )
    return data


def finished_units(path: Path, kind: WorkKind[_C], config: _C) -> frozenset[str]:
    """The units that a folder already holds for this very configuration, without its lock.

    Raises UsageError where it holds a run with another one, CorruptArtefactError.
    """
    if not is_run(path):
        return frozenset()
    stored, entries = read_work(path, kind)
    require_same(path, stored, config)
    return frozenset(entry.unit for entry in entries)


def require_same(path: Path, stored: object, asked: object) -> None:
    """Raise UsageError naming the first field in which two configurations differ."""
    difference = first_difference(stored, asked)
    if difference is not None:
        raise UsageError(
            f"{path} holds a run with another configuration (there, here): {difference}",
            hint="use another output folder, or the settings of that run",
        )


def read_config(path: Path, kind: WorkKind[_C]) -> _C:
    """A run's configuration; raises as `read_work`."""
    name = str(path / CONFIG_NAME)
    try:
        data = read_bytes(path / CONFIG_NAME)
    except FileNotFoundError:
        is_profile = (path / "profile.json").exists()
        message = f"{path} is {'a profile and ' if is_profile else ''}not a run folder"
        raise UsageError(message, hint=f"give the -o of {kind.command}") from None
    return decode(kind.config, parse(data, name), name)


def check_units(path: Path, units: Collection[str], entries: dict[str, JournalEntry]) -> None:
    """Raise CorruptArtefactError if the journals of `path` name a unit that is not one of these."""
    if unknown := sorted(set(entries) - set(units)):
        raise CorruptArtefactError(f"{path}: the journal has an unknown unit {unknown[0]!r}")
