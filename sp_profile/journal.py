"""Append-only journal of a run: one JSON line a finished prompt, with a checksum a line."""

from __future__ import annotations

import errno
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sp_profile.atomic import writing_errors
from sp_runtime.errors import CorruptArtefactError
from sp_runtime.strict_json import decode, encode, parse, read_bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class JournalEntry:
    """What became of one prompt.

    state `done`: the shard's SHA-256 and size; state `bad`: the prompt is quarantined, and why.
    """

    prompt: str
    state: Literal["done", "bad"]
    shard_sha256: str = ""
    bytes: int = 0
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Line:
    crc32: str
    entry: JournalEntry


def read_journal(path: Path) -> tuple[dict[str, JournalEntry], int]:
    """The last entry of each prompt, and the length in bytes of the valid part.

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
        entries[line.entry.prompt] = line.entry
    return entries, valid


def append(path: Path, entry: JournalEntry) -> None:
    """Add one line and flush it to the disk; raises ResourceError, leaving no partial line."""
    line = encode(_Line(crc32=_crc(entry), entry=entry)).encode("ascii") + b"\n"
    with writing_errors(path, size=len(line)):
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
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


def truncate(path: Path, size: int) -> None:
    """Cut a partial last line off, under the folder's lock."""
    with writing_errors(path):
        if path.exists() and path.stat().st_size > size:
            os.truncate(path, size)


def _crc(entry: JournalEntry) -> str:
    return f"{zlib.crc32(encode(entry).encode('ascii')):08x}"
