"""The table from exceptions to exit codes, and what is written where."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import click
import pytest
import torch
from sp_cli import profile_main
from sp_cli.errors import Terminated, explain
from sp_cli.options import with_output
from sp_cli.output import Output
from sp_cli.runner import run

from sp_runtime import errors

TABLE = [
    (errors.SpError("x"), 1, "FAILURE"),
    (errors.UsageError("x"), 2, "USAGE"),
    (errors.UnsupportedError("x"), 2, "UNSUPPORTED"),
    (errors.ProfileMismatchError("x"), 3, "PROFILE_MISMATCH"),
    (errors.CorruptArtefactError("x"), 4, "CORRUPT_ARTEFACT"),
    (errors.ResourceError("x"), 6, "RESOURCES"),
    (errors.FolderLockedError("x"), 7, "FOLDER_LOCKED"),
    (MemoryError(), 6, "RESOURCES"),
    (torch.OutOfMemoryError("CUDA out of memory"), 6, "RESOURCES"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 6, "RESOURCES"),
    (OSError(errno.ENOSPC, "No space left on device", "/x"), 6, "RESOURCES"),
    (OSError(errno.EDQUOT, "Disk quota exceeded", "/x"), 6, "RESOURCES"),
    (FileNotFoundError(errno.ENOENT, "No such file", "/x"), 2, "USAGE"),
    (OSError(errno.EIO, "Input/output error", "/x"), 1, "FAILURE"),
    (KeyboardInterrupt(), 130, "INTERRUPTED"),
    (Terminated(), 143, "TERMINATED"),
    (ZeroDivisionError("two\nlines"), 1, "INTERNAL"),
]


@pytest.mark.parametrize(
    ("error", "code", "name"), TABLE, ids=[f"{type(row[0]).__name__}-{row[1]}" for row in TABLE]
)
def test_every_error_has_a_code(error: BaseException, code: int, name: str) -> None:
    failure = explain(error)
    assert (failure.exit_code, failure.code) == (code, name)
    assert "\n" not in failure.message


def test_every_typed_error_is_in_the_table() -> None:
    tested = {type(error) for error, _, _ in TABLE}
    typed = {
        value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, errors.SpError)
    }
    assert typed <= tested


@pytest.mark.parametrize(
    "kind", [errors.ProfileMismatchError, errors.CorruptArtefactError, errors.FolderLockedError]
)
def test_an_error_without_a_hint_gets_that_of_its_kind(kind: type[errors.SpError]) -> None:
    assert explain(kind("x")).hint
    assert explain(kind("x", hint="do this")).hint == "do this"


def test_the_nearest_name_is_offered() -> None:
    assert errors.nearest("flexprefil", ["plan", "flexprefill"]) == "did you mean flexprefill?"
    assert errors.nearest("zzz", ["plan", "flexprefill"]) is None


def failing(error: BaseException) -> click.Group:
    @click.group()
    def group() -> None:
        pass

    @group.command()
    @with_output
    def fail(output: Output) -> None:
        raise error

    group.add_command(fail)
    return group


def test_an_error_is_one_line_and_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(failing(errors.CorruptArtefactError("bad bytes", hint="copy it again")), ["fail"])
    captured = capsys.readouterr()
    assert code == 4
    assert captured.out == ""
    assert captured.err == "error: bad bytes\nhint: copy it again\n"


def test_an_error_with_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    group = failing(errors.UsageError("no", hint="yes"))
    assert run(group, ["fail", "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    expected = {"code": "USAGE", "message": "no", "hint": "yes"}
    assert document == {"schema": "sp.error", "error": expected}


@pytest.mark.parametrize("debug", ["0", "1"])
def test_a_traceback_only_where_asked_for(
    debug: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SP_DEBUG", debug)
    assert run(failing(ZeroDivisionError("oops")), ["fail"]) == 1
    assert ("Traceback" in capsys.readouterr().err) == (debug == "1")


def test_a_run_too_short_to_cluster_is_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["calibrate", "--model", "./none", "-o", str(tmp_path / "run"), "--length"]
    assert run(profile_main.cli, [*words, "512"]) == 2
    assert "warning: sp-profile cluster will refuse this run" in capsys.readouterr().err
    assert run(profile_main.cli, [*words, "961"]) == 2
    assert "warning" not in capsys.readouterr().err


def test_interruption_is_130(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(failing(KeyboardInterrupt()), ["fail"]) == 130
    assert "run the same command again to resume" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    code = (
        "import click\n"
        "from sp_cli.runner import main\n"
        "@click.group()\n"
        "def group(): pass\n"
        "@group.command()\n"
        "def talk():\n"
        "    for n in range(200000): click.echo(n)\n"
        "main(group, 'talk')\n"
    )
    script = tmp_path / "talk.py"
    script.write_text(code)
    with subprocess.Popen(
        [sys.executable, str(script), "talk"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        errors_written = process.stderr.read()
        assert process.wait(timeout=60) == 141
    assert errors_written == b""
