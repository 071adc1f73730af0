"""`sp-profile report`: what it writes, and what it refuses before any work."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sp_cli.profile_main import cli

from sp_runtime.errors import UsageError

NASTY = "<script>window.pwned = 1</script>"
Report = Callable[..., Result]


@pytest.fixture
def report(measured) -> Report:
    """report(*arguments): the command on the measured profile."""

    def run(*arguments: object) -> Result:
        words = ["report", str(measured.profile), *map(str, arguments)]
        return CliRunner().invoke(cli, words)

    return run


def refused(result: Result) -> str:
    assert isinstance(result.exception, UsageError), result.output
    return result.exception.message


def test_everything_at_once(report: Report, measured, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    target = tmp_path / "report.html"
    done = report(
        *(measured.run, measured.evaluation, "-o", target),
        *("--figures", tmp_path / "figures", "--json"),
    )
    assert done.exception is None, done.output
    document = json.loads(done.stdout)
    assert document["schema"] == "sp.report"
    assert document["bytes"] == target.stat().st_size
    assert document["has_mass"]
    assert document["has_curves"]
    assert document["has_evaluation"]
    names = {Path(path).name for path in document["figures"]}
    assert {"density.png", "density.svg", "jaccard.svg"} <= names
    assert all((tmp_path / "figures" / name).stat().st_size > 1000 for name in names)
    before = target.read_bytes()
    assert "exists" in refused(report("-o", target))
    assert target.read_bytes() == before
    again = report("--eval", measured.evaluation, "-o", target, "--overwrite")
    assert again.exception is None, again.output
    assert again.stdout.startswith(str(target))
    assert target.read_bytes() != before
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".tmp"] == []


def test_text_is_matched_by_its_hash(report: Report, measured, tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    words = ("-o", target, "--include-text", "--prompts", measured.prompts)
    assert report(*words).exception is None
    page = target.read_text("utf-8")
    assert page.count("Text of the prompt") == 3
    assert "&lt;script&gt;window.pwned = 1&lt;/script&gt; and again</pre>" in page
    assert NASTY not in page


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["-o", "report.pdf"], "unknown format"),
        (["-o", "nowhere/report.html"], "is not a folder"),
        (["a", "b", "--eval", "c", "-o", "x.html"], "given twice"),
        (["-o", "x.html", "--prompts", "p.jsonl"], "needs --include-text"),
        (["no-run", "-o", "x.html"], "no-run"),
    ],
    ids=["format", "folder", "twice", "prompts", "run"],
)
def test_wrong_arguments_are_refused(
    report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in refused(report(*words))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["plotly", "jinja2"])
def test_a_missing_extra_is_named(
    report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, missing: str
) -> None:
    find = importlib.util.find_spec

    def without(name: str, *more: Any) -> Any:
        return None if name == missing else find(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    result = report("-o", tmp_path / "x.html")
    assert refused(result) == f"a report needs {missing}"
    assert isinstance(result.exception, UsageError)
    assert result.exception.hint == "pip install 'sparse-prefill[report]'"
