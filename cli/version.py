"""The version with the revision that it was built from, without running git."""

from __future__ import annotations

import json
import re
from pathlib import Path

from sp_runtime.version import __version__

_DISTRIBUTION = "sparse-prefill"
_HASH = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SHOWN = 12
_MAX_BYTES = 1 << 20


def version_line(program: str) -> str:
    """`sp-run 0.1.0 (git 0123456789ab)`; `(git unknown)` where nothing tells."""
    found = git_revision()
    return f"{program} {__version__} (git {found[:_SHOWN] if found else 'unknown'})"


def git_revision() -> str | None:
    """The full hash of the commit that this installation is of; None where nothing tells.

    A checkout says it itself; otherwise what `git archive` or the build wrote into revision.txt,
    or what pip recorded on installing from a repository (PEP 610).
    """
    package = Path(__file__).resolve().parent
    return (
        revision_of_checkout(package.parent)
        or _hash(_read(package / "revision.txt"))
        or _recorded_by_pip()
    )


def revision_of_checkout(root: Path) -> str | None:
    """The commit that a checkout of this project at `root` has checked out; None elsewhere."""
    if not (root / "pyproject.toml").is_file():
        return None
    git = root / ".git"
    if git.is_file():  # a worktree or a submodule: the file points to the folder
        git = root / _read(git).removeprefix("gitdir:").strip()
    head = _read(git / "HEAD")
    if not head.startswith("ref:"):
        return _hash(head)
    reference = head.removeprefix("ref:").strip()
    shared = git / _read(git / "commondir") if (git / "commondir").is_file() else git
    for folder in (git, shared):
        found = _hash(_read(folder / reference))
        if found is not None:
            return found
    return _packed(shared, reference)


def _packed(git: Path, reference: str) -> str | None:
    for line in _read(git / "packed-refs").splitlines():
        commit, _, name = line.partition(" ")
        if name == reference:
            return _hash(commit)
    return None


def _recorded_by_pip() -> str | None:
    from importlib.metadata import PackageNotFoundError, distribution  # too slow for every --help

    try:
        text = distribution(_DISTRIBUTION).read_text("direct_url.json")
        commit = json.loads(text or "{}").get("vcs_info", {}).get("commit_id", "")
    except (PackageNotFoundError, OSError, ValueError, AttributeError):
        return None
    return _hash(str(commit))


def _hash(text: str) -> str | None:
    return text.strip() if _HASH.fullmatch(text.strip()) else None


def _read(file: Path) -> str:
    """Its text; "" where there is none: a version is never a failure."""
    try:
        with open(file, "rb") as opened:
            return opened.read(_MAX_BYTES).decode("utf-8", "replace").strip()
    except OSError:
        return ""
