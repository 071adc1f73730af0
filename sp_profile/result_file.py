"""Where results may be written; checked before any work, without heavy imports."""

from __future__ import annotations

from pathlib import Path

from sp_runtime.errors import UsageError

SUFFIXES = (".jsonl", ".parquet")


def partial_folder(path: Path) -> Path:
    """The folder that holds finished results until `path` can be published."""
    return path.with_name(f"{path.name}.partial")


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, a target of another format or one that exists: UsageError.

    A file whose run was killed on its last step still has its partial folder, and is not refused.
    """
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"{path}: unknown format {path.suffix!r}", hint=f"end it in {' or '.join(SUFFIXES)}"
        )
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="name a file")
    if path.exists() and not overwrite and not partial_folder(path).is_dir():
        raise target_exists(path)
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder", hint="make it first")


def target_exists(path: Path) -> UsageError:
    """The error that keeps an existing file."""
    return UsageError(f"{path} exists", hint="pass --overwrite, or name another file")
