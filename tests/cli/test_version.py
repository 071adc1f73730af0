"""`--version` names the revision that is installed, and never fails for want of one."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sp_cli import version

COMMIT = "0123456789abcdef0123456789abcdef01234567"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A project with an empty .git folder."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".git" / "refs" / "heads").mkdir(parents=True)
    return tmp_path


def test_a_branch(checkout: Path) -> None:
    (checkout / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (checkout / ".git" / "refs" / "heads" / "main").write_text(COMMIT + "\n")
    assert version.revision_of_checkout(checkout) == COMMIT


def test_a_packed_branch(checkout: Path) -> None:
    (checkout / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    packed = f"# pack-refs with: peeled\n{'9' * 40} refs/heads/main2\n{COMMIT} refs/heads/main\n"
    (checkout / ".git" / "packed-refs").write_text(packed)
    assert version.revision_of_checkout(checkout) == COMMIT


def test_a_detached_head(checkout: Path) -> None:
    (checkout / ".git" / "HEAD").write_text(COMMIT)
    assert version.revision_of_checkout(checkout) == COMMIT


def test_a_worktree(checkout: Path, tmp_path: Path) -> None:
    tree, own = tmp_path / "tree", checkout / ".git" / "worktrees" / "tree"
    tree.mkdir()
    own.mkdir(parents=True)
    (tree / "pyproject.toml").touch()
    (tree / ".git").write_text(f"gitdir: {own}\n")
    (own / "HEAD").write_text("ref: refs/heads/side\n")
    (own / "commondir").write_text("../..\n")
    (checkout / ".git" / "refs" / "heads" / "side").write_text(COMMIT)
    assert version.revision_of_checkout(tree) == COMMIT


@pytest.mark.parametrize("head", ["", "ref: refs/heads/none", "ref: ../../etc", "nonsense", "\0"])
def test_nothing_to_tell(head: str, checkout: Path) -> None:
    (checkout / ".git" / "HEAD").write_text(head)
    assert version.revision_of_checkout(checkout) is None


def test_a_folder_that_is_no_checkout_of_this_project(tmp_path: Path) -> None:
    """Such as site-packages within somebody's repository."""
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "HEAD").write_text(COMMIT)
    assert version.revision_of_checkout(tmp_path) is None


def test_without_any_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(version, "git_revision", lambda: None)
    assert version.version_line("sp-run").endswith("(git unknown)")


@pytest.mark.parametrize(
    ("recorded", "found"),
    [
        (f'{{"url": "x", "vcs_info": {{"vcs": "git", "commit_id": "{COMMIT}"}}}}', COMMIT),
        ('{"url": "file:///x", "dir_info": {"editable": true}}', None),
        ("not JSON", None),
        ("[]", None),
        (None, None),
    ],
)
def test_what_pip_recorded(
    recorded: str | None, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Distribution:
        def read_text(self, name: str) -> str | None:
            assert name == "direct_url.json"
            return recorded

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution())
    assert version._recorded_by_pip() == found


@pytest.mark.parametrize("program", ["sp-profile", "sp-run"])
def test_version_of_this_checkout(program: str, command: Callable[..., Any]) -> None:
    import sp_runtime

    done = command(program, "--version")
    assert done.code == 0
    assert done.out.startswith(f"{program} {sp_runtime.__version__} (git ")
    if (ROOT / ".git").exists() and shutil.which("git"):
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        assert f"(git {head[:12]})" in done.out
