"""The lock on an output folder: one process or one group holds it, and death releases it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path

from sp_profile.atomic import writing_errors
from sp_runtime.errors import FolderLockedError, ResourceError, UsageError

LOCK_NAME = "lock"
_MAX_HOLDER_BYTES = 4096
_LOOKS, _BETWEEN_LOOKS = 25, 0.02  # seconds
_BUSY = (errno.EWOULDBLOCK, errno.EACCES)


class FolderLock:
    """A lock that is held; `token` names this holding of it and no other."""

    def __init__(self, folder: Path, descriptor: int, token: str) -> None:
        self.token = token
        self._folder = folder
        self._descriptor = descriptor

    def admit(self) -> None:
        """Let `join_lock` in, with this lock's token; strangers stay out.

        The system may let go for an instant between the two kinds of lock; FolderLockedError if
        a stranger was that quick.
        """
        _flock(self._folder, self._descriptor, fcntl.LOCK_SH)


@contextlib.contextmanager
def folder_lock(folder: Path, *, processes: int = 1) -> Iterator[FolderLock]:
    """Hold `folder`/lock alone; the kernel frees it when the holder ends, killed or not.

    processes: how many the holder speaks for, for the message to others.
    Raises FolderLockedError naming the holder, ResourceError where the file system cannot lock.
    """
    descriptor = _open(folder)
    try:
        _flock(folder, descriptor, fcntl.LOCK_EX)
        token = secrets.token_hex(8)
        with writing_errors(folder / LOCK_NAME, opened=True):
            _write_holder(descriptor, token, processes)
        yield FolderLock(folder, descriptor, token)
        # The file stays: unlinking it would let two processes lock two files of one name.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def join_lock(folder: Path, token: str) -> Iterator[None]:
    """Share the lock whose holder made `token`; FolderLockedError if another holds it by now."""
    descriptor = _open(folder)
    try:
        _flock(folder, descriptor, fcntl.LOCK_SH)
        # Nobody can take the lock from here on, so that what is read now stays true.
        if _read(descriptor).get("token") != token:
            raise FolderLockedError(
                f"{folder} was left by the first process of this group",
                hint="run the same command again to resume",
            )
        yield
    finally:
        os.close(descriptor)


def _open(folder: Path) -> int:
    path = folder / LOCK_NAME
    with writing_errors(path):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


def _flock(folder: Path, descriptor: int, kind: int) -> None:
    path = folder / LOCK_NAME
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _BUSY:
            raise ResourceError(
                f"{path}: cannot be locked: {error.strerror}",
                hint="use a folder on a local file system",
            ) from error
        raise FolderLockedError(
            f"{folder} is in use by {_describe(_holder(descriptor))}",
            hint="wait for it, or choose another folder",
        ) from None
    if not _is_still_there(path, descriptor):
        raise FolderLockedError(
            f"{folder} was replaced by another process just now", hint="run the same command again"
        )


def _is_still_there(path: Path, descriptor: int) -> bool:
    try:
        with writing_errors(path):
            return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except UsageError:  # gone
        return False


def _write_holder(descriptor: int, token: str, processes: int) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "start": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processes": processes,
        "token": token,
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode("ascii"), 0)


def _holder(descriptor: int) -> dict[str, object]:
    """Who holds the lock; one that has just taken it is given time to write that down."""
    holder = _read(descriptor)
    for _ in range(_LOOKS):
        if holder:
            break
        time.sleep(_BETWEEN_LOOKS)
        holder = _read(descriptor)
    return holder


def _read(descriptor: int) -> dict[str, object]:
    try:
        holder = json.loads(os.pread(descriptor, _MAX_HOLDER_BYTES, 0))
    except ValueError:  # nothing yet, or not of our making
        return {}
    return holder if isinstance(holder, dict) else {}


def _describe(holder: dict[str, object]) -> str:
    if not {"pid", "host", "start"} <= holder.keys():
        return "another process"
    text = f"process {holder['pid']} on {holder['host']} since {holder['start']}"
    others = holder.get("processes")
    return f"{text} (first of {others})" if isinstance(others, int) and others > 1 else text
