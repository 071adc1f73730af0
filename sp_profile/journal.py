"""Append-only journals of a run: one JSON line a finished unit, with a checksum a line.

Each process of a group writes a journal of its own; readers merge them.
"""

from __future__ import annotations

import errno
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sp_profile.atomic import publish_bytes, sync_folder, writing_errors
from sp_runtime.errors import CorruptArtefactError
from sp_runtime.strict_json import decode, encode, parse, read_bytes

JOURNAL_NAME = "journal.jsonl"
_NAMES = re.compile(r"journal(\.[1-9][0-9]{0,8})?\.jsonl")


@dataclass(frozen=True, kw_only=True, slots=True)
class JournalEntry:
    """What became of one unit of work, such as a prompt.

    state `done`: SHA-256 and size of its file; state `bad`: the unit is quarantined, and why.
    """

    unit: str
    state: Literal["done", "bad"]
    sha256: str = ""
    bytes: int = 0
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    crc32: str
    entry: JournalEntry


def journal_name(rank: int) -> str:
    """The file name of a rank's journal."""
    return JOURNAL_NAME if rank == 0 else f"journal.{rank}.jsonl"


def is_journal(name: str) -> bool:
    return _NAMES.fullmatch(name) is not None


def read_journal(path: Path) -> tuple[dict[str, JournalEntry], int]:
    """The last entry of each unit, and the length in bytes of the valid part.

    A last line without its newline is what a kill leaves, and is ignored; a damaged line before
    it raises CorruptArtefactError.
    """
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        return {}, 0
    entries: dict[str, JournalEntry] = {}
    valid = data.rfind(b"\n") + 1
    for number, raw in enumerate(data[:valid].splitlines(), start=1):
        name = f"{path}:{number}"
        line = decode(_Line, parse(raw, name), name)
        if line.crc32 != _crc(line.entry):
            raise CorruptArtefactError(f"{name}: checksum does not match", hint="use a new folder")
        entries[line.entry.unit] = line.entry
    return entries, valid


def read_journals(folder: Path) -> dict[str, JournalEntry]:
    """The entries of every journal in a folder."""
    entries: dict[str, JournalEntry] = {}
    for path in journal_files(folder):
        entries.update(read_journal(path)[0])
    return entries


def journal_files(folder: Path) -> tuple[Path, ...]:
    """The journals in a folder, sorted by name."""
    try:
        names = sorted(name for name in os.listdir(folder) if is_journal(name))
    except FileNotFoundError:
        return ()
    return tuple(folder / name for name in names)


def merge_journals(folder: Path, entries: dict[str, JournalEntry]) -> None:
    """Make the journal of rank 0 hold exactly `entries`, and remove the others, under the lock.

    Old and new journals say the same at every moment, apart from what `entries` leaves out.
    """
    path = folder / JOURNAL_NAME
    lines = b"".join(_encode(entry) for entry in entries.values())
    others = [other for other in journal_files(folder) if other != path]
    if others or not path.exists() or path.read_bytes() != lines:
        publish_bytes(path, lines, opened=True)
    with writing_errors(path, opened=True):
        for other in others:
            other.unlink(missing_ok=True)


def append(path: Path, entry: JournalEntry) -> None:
    """Add one line and flush it to the disk; raises ResourceError, leaving no partial line."""
    line = _encode(entry)
    with writing_errors(path, size=len(line), opened=True):
        flags = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        try:
            descriptor = os.open(path, flags)
        except FileNotFoundError:
            descriptor = os.open(path, flags | os.O_CREAT, 0o666)
            sync_folder(path.parent)
        try:
            start = os.fstat(descriptor).st_size
            try:
                if os.write(descriptor, line) != len(line):
                    raise OSError(errno.ENOSPC, "short write")
                os.fsync(descriptor)
            except OSError:
                os.ftruncate(descriptor, start)
                raise
        finally:
            os.close(descriptor)


def _encode(entry: JournalEntry) -> bytes:
    return encode(_Line(crc32=_crc(entry), entry=entry)).encode("ascii") + b"\n"


def _crc(entry: JournalEntry) -> str:
    return f"{zlib.crc32(encode(entry).encode('ascii')):08x}"
