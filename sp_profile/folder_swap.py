"""Publishing a folder whole: built beside its place, then renamed or exchanged into it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from sp_profile.atomic import sync_folder, writing_errors
from sp_runtime.errors import UsageError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def require_replaceable(
    folder: Path, names: Collection[str], marker: str, *, overwrite: bool
) -> None:
    """Raise UsageError unless `folder` is absent, empty, or of our making and to be overwritten.

    names: the files that we write; a folder that holds anything else, or lacks `marker`, is never
    replaced.
    """
    with writing_errors(folder):
        try:
            entries = sorted(os.listdir(folder))
        except FileNotFoundError:
            return
    if not entries:
        return
    if not overwrite:
        raise UsageError(
            f"{folder} exists and is not empty", hint="choose another folder or pass --overwrite"
        )
    foreign = [
        name
        for name in entries
        if name not in names or not stat.S_ISREG(os.lstat(folder / name).st_mode)
    ]
    if foreign or marker not in entries:
        what = f"holds {foreign[0]!r}" if foreign else f"has no {marker}"
        raise UsageError(f"{folder} {what}, so it is not overwritten", hint="choose another folder")


@contextlib.contextmanager
def publish_folder(folder: Path, names: Collection[str]) -> Iterator[Path]:
    """A new folder that takes the place of `folder` when the block ends well, else vanishes.

    The exchange is one system call on Linux. Elsewhere it is two renames; between them the old
    content lies complete under a hidden name beside the target. Only files of these names are ever
    deleted.
    """
    with writing_errors(folder):
        target = Path(os.path.realpath(folder))
        target.parent.mkdir(parents=True, exist_ok=True)
        building = _beside(target)
        building.mkdir()
        try:
            yield building
            sync_folder(building)
            _move(building, target, names)
            sync_folder(target.parent)
        finally:
            _remove(building, names)  # by now the old content, where the folders were exchanged


def _move(building: Path, target: Path, names: Collection[str]) -> None:
    try:
        os.rename(building, target)  # where it is absent or an empty folder
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if _exchange(building, target):
        return
    old = _beside(target)
    os.rename(target, old)
    try:
        os.rename(building, target)
    except OSError:
        os.rename(old, target)
        raise
    _remove(old, names)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two folders atomically; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    done = rename(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE)
    if done == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(b))


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")


def _remove(folder: Path, names: Collection[str]) -> None:
    with contextlib.suppress(OSError):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(folder / name)
        os.rmdir(folder)
