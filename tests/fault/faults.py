"""A layer under every write of a run that fails the k-th file-system call, or kills there.

Calls are counted only where they touch something under one folder, so that what libraries do
elsewhere does not shift the numbers. A write that fails or is killed leaves half of its bytes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import signal
from pathlib import Path

from sp_profile import folder_swap

CREATING = frozenset({"open", "mkdir", "write", "fsync", "rename", "replace", "exchange"})
# What goes on failing after the first failure, as on a disk that stays full or read-only.
LASTING = {errno.ENOSPC: CREATING, errno.EROFS: CREATING | {"unlink", "rmdir", "truncate"}}
_BY_PATH = ("mkdir", "unlink", "rmdir", "rename", "replace", "truncate")
_BY_DESCRIPTOR = {"fsync": "fsync", "ftruncate": "truncate"}


class Faults:
    """Counts the calls of a `with` block under `root`; at call number `at` comes the fault.

    code: the errno of the fault, or None for SIGKILL of this process. calls: names, in order.
    """

    def __init__(self, root: Path, at: int = 0, code: int | None = errno.EIO) -> None:
        self.calls: list[str] = []
        self._root, self._at, self._code = str(root), at, code
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> Faults:
        for name in _BY_PATH:
            self._patch(os, name, self._by_path(name, getattr(os, name)))
        for name, kind in _BY_DESCRIPTOR.items():
            self._patch(os, name, self._by_descriptor(kind, getattr(os, name)))
        for name in ("flock", "lockf"):
            self._patch(fcntl, name, self._by_descriptor("lock", getattr(fcntl, name)))
        self._patch(os, "open", self._open(os.open))
        self._patch(os, "write", self._write(os.write))
        self._patch(os, "pwrite", self._by_descriptor("write", os.pwrite))
        self._patch(os, "fdopen", self._fdopen(os.fdopen))
        self._patch(folder_swap, "_exchange", self._by_path("exchange", folder_swap._exchange))
        return self

    def __exit__(self, *error: object) -> None:
        self._patches.close()

    def step(self, name: str, half=lambda: None) -> None:
        """Count a call; `half`: what a write leaves behind when it fails here."""
        self.calls.append(name)
        number = len(self.calls)
        lasts = 0 < self._at < number and name in LASTING.get(self._code, ())
        if number == self._at:
            half()
        if number == self._at or lasts:
            if self._code is None:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(self._code, os.strerror(self._code))

    def _patch(self, module, name: str, function) -> None:
        before = getattr(module, name)
        setattr(module, name, function)
        self._patches.callback(setattr, module, name, before)

    def _is_ours(self, path) -> bool:
        return os.path.abspath(os.fspath(path)).startswith(self._root)

    def _descriptor_is_ours(self, descriptor: int) -> bool:
        return os.readlink(f"/proc/self/fd/{descriptor}").startswith(self._root)

    def _by_path(self, name: str, function):
        def call(path, *rest, **options):
            if self._is_ours(path):
                self.step(name)
            return function(path, *rest, **options)

        return call

    def _by_descriptor(self, name: str, function):
        def call(descriptor, *rest):
            if self._descriptor_is_ours(descriptor):
                self.step(name)
            return function(descriptor, *rest)

        return call

    def _open(self, function):
        def call(path, flags, *rest, **options):
            if self._is_ours(path):
                self.step("open" if flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR) else "list")
            return function(path, flags, *rest, **options)

        return call

    def _write(self, function):
        def call(descriptor, data):
            if self._descriptor_is_ours(descriptor):
                self.step("write", lambda: function(descriptor, data[: len(data) // 2]))
            return function(descriptor, data)

        return call

    def _fdopen(self, function):
        faults = self

        class File(io.BufferedRandom):
            def write(self, data):
                def half():
                    io.BufferedRandom.write(self, bytes(data)[: len(data) // 2])
                    io.BufferedRandom.flush(self)

                faults.step("write", half)
                return super().write(data)

        def call(descriptor, *rest, **options):
            if not self._descriptor_is_ours(descriptor):
                return function(descriptor, *rest, **options)
            return File(function(descriptor, *rest, buffering=0, **options))

        return call


CODES = {
    "ENOSPC": errno.ENOSPC,
    "EIO": errno.EIO,
    "EROFS": errno.EROFS,
    "SIGKILL": None,
}


def count_calls(root: Path, work) -> list[str]:
    """The names of the calls that `work` makes under `root`."""
    with Faults(root) as faults:
        work()
    return faults.calls


def strike(root: Path, at: int, code: int | None, work) -> BaseException | None:
    """Do `work` with a fault at one call; the error that it raised, or None.

    SIGKILL strikes a child process, and comes back as ChildProcessError.
    """
    if code is not None:
        try:
            with Faults(root, at, code):
                work()
        except Exception as error:  # the caller checks its type
            return error
        return None
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException), Faults(root, at, None):
            work()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status), "the process was to be killed"
    return ChildProcessError("killed")
