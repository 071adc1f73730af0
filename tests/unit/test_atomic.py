"""Atomic publishing: the old content or the new, no leftovers, errors that say what is missing."""

import errno
import os
import stat

import pytest

from sp_profile import atomic
from sp_profile.atomic import publish_bytes, publish_file, sync_folder
from sp_runtime.errors import ResourceError, UsageError


def publish(path, then):
    """Write b"new" in a block that then calls `then`."""
    with publish_file(path, size=3) as file:
        file.write(b"new")
        then()


def test_content_is_published_and_nothing_else(tmp_path):
    publish_bytes(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    publish_bytes(tmp_path / "a", b"newer")
    assert (tmp_path / "a").read_bytes() == b"newer"
    assert os.listdir(tmp_path) == ["a"]


def test_published_file_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        publish_bytes(tmp_path / "a", b"")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (errno.ENOSPC, "no space is left"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission"),
        (errno.EIO, "network file system"),
    ],
    ids=["ENOSPC", "EDQUOT", "EROFS", "EACCES", "EIO"],
)
def test_failure_leaves_the_old_content(tmp_path, monkeypatch, step, code, reason):
    publish_bytes(tmp_path / "a", b"old")

    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if step != "write":
            patch.setattr(atomic.os, step, fail)
        with pytest.raises(ResourceError, match=reason) as caught:
            publish(tmp_path / "a", fail if step == "write" else lambda: None)
    assert str(tmp_path / "a") in caught.value.message
    if code in (errno.ENOSPC, errno.EDQUOT):
        assert "3 bytes are needed" in caught.value.hint
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_exception_of_the_block_passes_through(tmp_path):
    def fail():
        raise KeyError

    with pytest.raises(KeyError):
        publish(tmp_path / "a", fail)
    assert os.listdir(tmp_path) == []


def test_data_reaches_the_disk_before_the_name_does(tmp_path, monkeypatch):
    calls = []
    replace, fsync = os.replace, os.fsync

    def recorded_fsync(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def recorded_replace(source, target):
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(atomic.os, "fsync", recorded_fsync)
    monkeypatch.setattr(atomic.os, "replace", recorded_replace)
    publish_bytes(tmp_path / "a", b"x")
    assert calls == ["file", "replace", "folder"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP], ids=["EINVAL", "ENOTSUP"])
def test_folders_that_cannot_be_flushed_are_no_failure(tmp_path, monkeypatch, code):
    def fail(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(atomic.os, "fsync", fail)
    sync_folder(tmp_path)


def test_missing_folder_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="folder does not exist"):
        publish_bytes(tmp_path / "gone" / "a", b"")


def test_unknown_errors_keep_their_type(tmp_path):
    with pytest.raises(OSError, match="odd") as caught, publish_file(tmp_path / "a"):
        raise OSError(errno.EDOM, "odd")
    assert not isinstance(caught.value, ResourceError)
