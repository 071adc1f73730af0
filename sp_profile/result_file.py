"""Where results may be written; checked before any work, without heavy imports."""

from __future__ import annotations

from pathlib import Path

from sp_runtime.errors import UsageError

SUFFIXES = (".jsonl", ".parquet")


def check_target(path: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, a target of another format or one that exists: UsageError."""
    if path.suffix not in SUFFIXES:
        raise UsageError(
            f"{path}: unknown format {path.suffix!r}", hint=f"end it in {' or '.join(SUFFIXES)}"
        )
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="name a file")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists", hint="pass --overwrite, or name another file")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder", hint="make it first")
