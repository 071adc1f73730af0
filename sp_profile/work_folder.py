"""A folder in which work is done unit by unit, by one process or a group, and can be resumed.

It holds the resolved configuration (`run.json`), one file a finished unit, a journal a process and
a lock. A killed run loses at most the units in hand; the same configuration resumes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from sp_profile.atomic import (
    publish_bytes,
    sync_folder,
    temporary_name,
    temporary_of,
    writing_errors,
)
from sp_profile.journal import (
    JournalEntry,
    append,
    is_journal,
    journal_name,
    merge_journals,
    read_journals,
)
from sp_profile.lock import LOCK_NAME, folder_lock, join_lock
from sp_profile.run_group import Exchange, RunGroup, connect
from sp_profile.work_kind import (
    CONFIG_NAME,
    WorkKind,
    check_units,
    finished_units,
    is_run,
    read_config,
    read_unit,
    read_work,
    require_same,
)
from sp_runtime import errors
from sp_runtime.errors import FolderLockedError, SpError, UsageError
from sp_runtime.strict_json import encode

__all__ = [
    "WorkFolder",
    "WorkKind",
    "finished_units",
    "is_run",
    "open_work",
    "read_unit",
    "read_work",
    "remove_work",
]

_CLAIMS = "claims"
_OWN = {CONFIG_NAME, LOCK_NAME, _CLAIMS}
_UNIT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_BUSY = (errno.EAGAIN, errno.EACCES)
_C = TypeVar("_C")


class WorkFolder(Generic[_C]):
    """The writer's side, under the folder's lock; made by `open_work`."""

    def __init__(
        self, path: Path, kind: WorkKind[_C], config: _C, group: RunGroup, claims: int | None
    ) -> None:
        self.path = path
        self.config = config
        self.group = group
        self._kind = kind
        self._numbers = {unit: number for number, unit in enumerate(kind.units(config))}
        self._entries: dict[str, JournalEntry] = {}
        self._claims = claims
        self._journal = path / journal_name(group.rank)
        self.refresh()

    @property
    def finished(self) -> frozenset[str]:
        """Units that need no more work, quarantined ones included, as of the last `refresh`."""
        return frozenset(self._entries)

    @property
    def is_complete(self) -> bool:
        return len(self._entries) == len(self._numbers)

    @property
    def entries(self) -> tuple[JournalEntry, ...]:
        """Of the finished units, ascending by unit."""
        return tuple(self._entries[unit] for unit in sorted(self._entries))

    @property
    def quarantined(self) -> tuple[JournalEntry, ...]:
        return tuple(entry for entry in self.entries if entry.state == "bad")

    def refresh(self) -> None:
        """Read the journals again: what other processes of the group have finished."""
        self._entries = read_journals(self.path)
        check_units(self.path, self._numbers, self._entries)

    @contextlib.contextmanager
    def claim(self, unit: str) -> Iterator[bool]:
        """Whether this process is to do `unit` now; no other of its group is while it does.

        False where the unit is finished or in another's hands. The kernel frees the claim of a
        process that dies, and whoever claims the unit next does it again.
        """
        if self._claims is None:
            yield unit not in self._entries
            return
        number = self._numbers[unit]
        try:
            fcntl.lockf(self._claims, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
        except OSError as error:
            if error.errno not in _BUSY:
                with writing_errors(self.path / _CLAIMS, opened=True):
                    raise
            yield False
            return
        try:
            self.refresh()
            yield unit not in self._entries
        finally:
            fcntl.lockf(self._claims, fcntl.LOCK_UN, 1, number)

    def add(self, unit: str, data: bytes) -> None:
        """Publish a unit's file, then journal it.

        Raises ResourceError; what was finished before stays so.
        """
        assert unit in self._numbers
        publish_bytes(self._kind.file(self.path, unit), data, opened=True)
        digest = hashlib.sha256(data).hexdigest()
        self._append(JournalEntry(unit=unit, state="done", sha256=digest, bytes=len(data)))

    def quarantine(self, unit: str, reason: str) -> None:
        """Record that a unit cannot be done; ResourceError as `add`."""
        assert unit in self._numbers
        self._append(JournalEntry(unit=unit, state="bad", reason=reason))

    def read(self, entry: JournalEntry) -> bytes:
        """As `read_unit`."""
        return read_unit(self.path, self._kind, entry)

    def _append(self, entry: JournalEntry) -> None:
        append(self._journal, entry)
        self._entries[entry.unit] = entry


@contextlib.contextmanager
def open_work(
    path: str | Path, kind: WorkKind[_C], config: _C, *, group: RunGroup | None = None
) -> Iterator[WorkFolder[_C]]:
    """Open a folder for work; a new or empty one is set up, an equal run resumed.

    group: the processes that share the work, of which each calls this with an equal `config`; the
    first one sets the folder up and holds its lock for all.
    Raises UsageError naming the field in which the configuration differs, FolderLockedError naming
    the holder, CorruptArtefactError, ResourceError; the members raise what the first one raised.
    """
    path, group = Path(path), group or RunGroup()
    if group.is_alone:
        with _first(path, kind, config, group) as work:
            yield work
        return
    exchange = connect(group)
    key = f"open {path}"
    with contextlib.ExitStack() as stack:
        if group.is_first:
            try:
                work = stack.enter_context(_first(path, kind, config, group, exchange, key))
            except SpError as error:
                exchange.tell(key, json.dumps([error.code, error.message, error.hint]))
                raise
        else:
            word = exchange.hear(key)
            try:
                work = stack.enter_context(_member(path, kind, config, group, word))
            finally:  # one that is refused has come too
                exchange.tell(f"{key} joined {group.rank}", "")
        yield work
        if group.is_first:
            # The lock is the first one's, so it stays until the slowest has come or was refused.
            for rank in range(1, group.world_size):
                exchange.hear(f"{key} joined {rank}")


def remove_work(path: Path, kind: WorkKind[Any], *, lock: bool = False) -> None:
    """Remove a folder of this kind, whole at once for readers; files of others stay.

    lock: take its lock first; otherwise the caller holds it.
    """
    with contextlib.ExitStack() as stack:
        if lock:
            stack.enter_context(folder_lock(path))
        with writing_errors(path, opened=True):
            doomed = path
            if temporary_of(path.name) is None:
                doomed = path.with_name(temporary_name(path.name))
                os.rename(path, doomed)
                sync_folder(path.parent)
        # What cannot be removed now is left to the next run: nothing depends on it.
        with contextlib.suppress(OSError):
            _unlink(doomed / kind.data, lambda name: name.endswith(kind.suffix))
            _unlink(doomed, lambda name: name in _OWN | kind.others or is_journal(name))


def _unlink(folder: Path, is_own: Callable[[str], bool]) -> None:
    for name in os.listdir(folder) if folder.is_dir() else ():
        if is_own(name) or temporary_of(name) is not None:
            (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()


@contextlib.contextmanager
def _first(
    path: Path,
    kind: WorkKind[_C],
    config: _C,
    group: RunGroup,
    exchange: Exchange | None = None,
    key: str = "",
) -> Iterator[WorkFolder[_C]]:
    _check_names(path, kind, config)
    _make_folders(path, kind)
    with folder_lock(path, processes=group.world_size) as lock:
        stored = read_config(path, kind) if (path / CONFIG_NAME).exists() else None
        config = config if stored is None else _settle(path, kind, stored, config)
        if stored is None or stored != config:
            publish_bytes(path / CONFIG_NAME, encode(config).encode("ascii") + b"\n", opened=True)
        _remove_left_overs(path, kind)
        entries = read_journals(path)
        check_units(path, kind.units(config), entries)
        # A unit whose file has gone is done again.
        kept = {
            unit: entry
            for unit, entry in entries.items()
            if entry.state == "bad" or kind.file(path, unit).exists()
        }
        merge_journals(path, kept)
        with _claims(path, group) as claims:
            work = WorkFolder(path, kind, config, group, claims)
            if exchange is not None:
                lock.admit()
                exchange.tell(key, json.dumps(lock.token))
            yield work


@contextlib.contextmanager
def _member(
    path: Path, kind: WorkKind[_C], config: _C, group: RunGroup, word: str
) -> Iterator[WorkFolder[_C]]:
    told = json.loads(word)
    if not isinstance(told, str):
        code, message, hint = told
        raise _error_of(code)(message, hint=hint)
    with join_lock(path, told):
        config = _settle(path, kind, read_config(path, kind), config)
        with _claims(path, group) as claims:
            yield WorkFolder(path, kind, config, group, claims)


@contextlib.contextmanager
def _claims(path: Path, group: RunGroup) -> Iterator[int | None]:
    """The file whose byte n is locked by whoever does the n-th unit; None for one process.

    Such locks end when any descriptor of the file is closed, so a process has one only.
    """
    if group.is_alone:
        yield None
        return
    with writing_errors(path / _CLAIMS, opened=True):
        descriptor = os.open(path / _CLAIMS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _check_names(path: Path, kind: WorkKind[_C], config: _C) -> None:
    units = kind.units(config)
    assert len(set(units)) == len(units), "each unit once"
    assert all(_UNIT.fullmatch(unit) for unit in units), "units can be names of files"
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is not a folder", hint="choose another output")
    with writing_errors(path):
        existing = set(os.listdir(path)) if path.exists() else set()
    own = _OWN | {kind.data} | kind.others
    strangers = [name for name in existing - own if not (temporary_of(name) or is_journal(name))]
    if CONFIG_NAME not in existing and strangers:
        raise UsageError(
            f"{path} holds other files, such as {min(strangers)}",
            hint="choose an empty or new output folder",
        )


def _make_folders(path: Path, kind: WorkKind[Any]) -> None:
    with writing_errors(path):
        for folder in (path, path / kind.data):
            if not folder.is_dir():
                folder.mkdir(parents=True, exist_ok=True)
                sync_folder(folder.parent)


def _remove_left_overs(path: Path, kind: WorkKind[Any]) -> None:
    """Temporary files of killed processes: under the lock, nobody else writes here."""
    with writing_errors(path, opened=True):
        for folder in (path, path / kind.data):
            for name in os.listdir(folder):
                if temporary_of(name) is not None:
                    (folder / name).unlink(missing_ok=True)


def _settle(path: Path, kind: WorkKind[_C], stored: _C, asked: _C) -> _C:
    """What a folder that holds `stored` is about when `asked` is run in it."""
    if kind.merge is not None:
        return kind.merge(stored, asked)
    require_same(path, stored, asked)
    return stored


def _error_of(code: str) -> type[SpError]:
    kinds: tuple[type[SpError], ...] = (
        errors.UsageError,
        errors.UnsupportedError,
        errors.CorruptArtefactError,
        errors.ResourceError,
        FolderLockedError,
    )
    return next((kind for kind in kinds if kind.code == code), SpError)
