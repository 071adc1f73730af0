"""Writes the git revision into what is built; everything else stands in pyproject.toml."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from setuptools import setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

ROOT = Path(__file__).parent


def revision() -> str | None:
    """The commit of a checkout without changes; None elsewhere: then nothing is written."""

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    if not (ROOT / ".git").exists():
        return None
    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return None if changed else git("rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None


def write_revision(file: Path) -> None:
    """Replace the file, which may be a hard link to the one of the checkout."""
    found = revision()
    if found is not None:
        file.unlink(missing_ok=True)
        file.write_text(found + "\n", encoding="ascii")


class BuildWithRevision(build_py):
    """As setuptools'; an editable installation asks its checkout instead."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            write_revision(Path(self.build_lib, "sp_cli", "revision.txt"))


class SourceWithRevision(sdist):
    """As setuptools'."""

    def make_release_tree(self, base_dir: str, files: Any) -> None:
        super().make_release_tree(base_dir, files)
        write_revision(Path(base_dir, "cli", "revision.txt"))


setup(cmdclass={"build_py": BuildWithRevision, "sdist": SourceWithRevision})
