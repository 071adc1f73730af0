"""Publishing a folder whole: built beside its place, then renamed or exchanged into it."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from sp_profile.atomic import sync_folder, temporary_name, temporary_of, writing_errors
from sp_runtime.errors import UsageError

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_OLD = ".old"


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
    content lies complete under a hidden name beside the target, from where the next call brings it
    back. What a killed process left beside the target is removed first. Only files of these names
    are ever deleted.
    """
    with writing_errors(folder):
        target = Path(os.path.realpath(folder))
        target.parent.mkdir(parents=True, exist_ok=True)
        _clear_left_overs(target, names)
        with _building_folder(target) as building:
            try:
                yield building
                sync_folder(building)
                _move(building, target, names)
                sync_folder(target.parent)
            finally:
                _remove(building, names)  # by now the old content, where they were exchanged


@contextlib.contextmanager
def _building_folder(target: Path) -> Iterator[Path]:
    """A new folder beside the target, locked while it is in use, so that nobody clears it away."""
    while True:
        building = target.with_name(temporary_name(target.name))
        building.mkdir()
        try:
            with _hold(building) as holds:
                if holds is not False and building.exists():
                    yield building
                    return
        except OSError:
            with contextlib.suppress(OSError):
                building.rmdir()
            raise
        # Another process took the folder for a left-over before it was locked.


@contextlib.contextmanager
def _hold(folder: Path) -> Iterator[bool | None]:
    """Whether this process now holds a folder; None where folders cannot be locked."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        yield False
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            holds: bool | None = True
        except OSError as error:
            holds = False if error.errno == errno.EWOULDBLOCK else None
        yield holds
    finally:
        os.close(descriptor)


def _clear_left_overs(target: Path, names: Collection[str]) -> None:
    """Bring back or remove what killed processes left beside the target; the living keep theirs."""
    for entry in sorted(target.parent.iterdir()):
        is_old = entry.name.endswith(_OLD)
        name = entry.name.removesuffix(_OLD)
        if temporary_of(name) != target.name or not stat.S_ISDIR(entry.lstat().st_mode):
            continue
        with _hold(entry) as holds:
            if holds is not True:
                continue
            if is_old and not target.exists():
                os.rename(entry, target)
            else:
                _remove(entry, names)


def _move(building: Path, target: Path, names: Collection[str]) -> None:
    try:
        os.rename(building, target)  # where it is absent or an empty folder
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if _exchange(building, target):
        return
    with _hold(target):
        old = target.with_name(temporary_name(target.name) + _OLD)
        os.rename(target, old)
        try:
            os.rename(building, target)
        except OSError:
            os.rename(old, target)
            raise
        try:
            sync_folder(target.parent)
        finally:
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


def _remove(folder: Path, names: Collection[str]) -> None:
    """Remove a folder of these files and of their temporaries, unless it holds anything else."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if name in names or temporary_of(name) in names:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(folder / name)
        os.rmdir(folder)
