"""Publishing files atomically: readers see the old content or the new, whatever fails."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from sp_runtime.errors import ResourceError, UsageError

_RESOURCES = {
    errno.ENOSPC: "no space is left on the disk",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.EIO: "the disk or network file system fails",
    errno.ESTALE: "the network file system has lost the file",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open",
    errno.EFBIG: "the file is larger than the file system or a limit allows",
    errno.ENOLCK: "the file system has no locks left",
    errno.ENODEV: "the device has gone",
    errno.ENXIO: "the device has gone",
    errno.ENOTCONN: "the network file system is not connected",
    errno.ETIMEDOUT: "the network file system does not answer",
}
# The same where the folder was there a moment ago.
_VANISHED = (errno.ENOENT, errno.ENOTDIR)
_PATHS = {
    errno.ENOENT: "the folder does not exist",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.EISDIR: "it is a folder",
    errno.ELOOP: "the path is a cycle of symlinks",
    errno.ENAMETOOLONG: "the name is too long",
}
_TEMPORARY = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp", re.DOTALL)
_NO_DIRECTORY_SYNC = (errno.EINVAL, errno.ENOTSUP)


def publish_bytes(path: Path, data: bytes, *, opened: bool = False) -> None:
    """Replace `path` with `data`, durably; ResourceError or UsageError name what is missing.

    opened: as in `writing_errors`.
    """
    with publish_file(path, size=len(data), opened=opened) as file:
        file.write(data)


@contextlib.contextmanager
def publish_file(
    path: Path, *, size: int | None = None, opened: bool = False
) -> Iterator[IO[bytes]]:
    """A binary file that becomes `path` when the block ends well, and vanishes when it does not.

    The temporary file lies in the same folder, is flushed to the disk and renamed, and the folder
    is flushed after it. size: bytes to come, for the message where the disk is full.
    """
    temporary = path.with_name(temporary_name(path.name))
    with writing_errors(path, size=size, opened=opened):
        try:
            # Exclusive creation under the process's umask; mkstemp would hide it from others.
            descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
            with os.fdopen(descriptor, "w+b") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def temporary_name(name: str) -> str:
    """A new name for what is to become `name`."""
    return f".{name}.{secrets.token_hex(8)}.tmp"


def temporary_of(name: str) -> str | None:
    """What a name made by `temporary_name` is to become; None for any other name."""
    match = _TEMPORARY.fullmatch(name)
    return None if match is None else match[1]


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the file system knows how."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_DIRECTORY_SYNC:
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def writing_errors(path: Path, *, size: int | None = None, opened: bool = False) -> Iterator[None]:
    """Turn the operating system's errors about writing `path` into typed ones.

    opened: its folder was there before, so a missing one has vanished and is a ResourceError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _RESOURCES:
            reason = _RESOURCES[error.errno]
            raise ResourceError(
                f"{path}: cannot be written: {reason}", hint=_hint(path, error.errno, size)
            ) from error
        if opened and error.errno in _VANISHED:
            raise ResourceError(
                f"{path}: cannot be written: its folder has vanished",
                hint="bring the disk or network file system back, then run the command again",
            ) from error
        if error.errno in _PATHS:
            raise UsageError(f"{path}: cannot be written: {_PATHS[error.errno]}") from error
        raise


def _hint(path: Path, code: int, size: int | None) -> str:
    if code not in (errno.ENOSPC, errno.EDQUOT):
        return "choose a folder that can be written"
    needed = "" if size is None else f"{size} bytes are needed, "
    try:
        return f"{needed}{shutil.disk_usage(path.parent).free} bytes are free; make room"
    except OSError:
        return f"{needed}make room or choose another disk"
