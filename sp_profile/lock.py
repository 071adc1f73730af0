"""An exclusive lock on an output folder, held by one process and released by its death."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from sp_profile.atomic import writing_errors
from sp_runtime.errors import FolderLockedError, ResourceError

_MAX_HOLDER_BYTES = 4096


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold `folder`/lock; the kernel frees it when the holder ends, killed or not.

    Raises FolderLockedError naming the holder, ResourceError where the file system cannot lock.
    """
    path = folder / "lock"
    with writing_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise ResourceError(
                    f"{path}: cannot be locked: {error.strerror}",
                    hint="use a folder on a local file system",
                ) from error
            raise FolderLockedError(
                f"{folder} is in use by {_read_holder(descriptor)}",
                hint="wait for it, or choose another folder",
            ) from None
        _write_holder(descriptor)
        yield
        # The file stays: unlinking it would let two processes lock two files of one name.
        os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _write_holder(descriptor: int) -> None:
    holder = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "start": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode("ascii"), 0)


def _read_holder(descriptor: int) -> str:
    data = os.pread(descriptor, _MAX_HOLDER_BYTES, 0)
    try:
        holder = json.loads(data)
        return f"process {holder['pid']} on {holder['host']} since {holder['start']}"
    except (ValueError, KeyError, TypeError):
        return "another process"
