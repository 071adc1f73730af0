"""Help, versions and how fast they come."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sp_cli.program import walk
from sp_cli.reference import PROGRAMS

HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "scipy",
    "sklearn",
    "pyarrow",
    "rich",
    "triton",
    "matplotlib",
)
COMMANDS = [words for program in PROGRAMS for words, _ in walk(program, (program.name or "",))]
SECONDS = 0.5


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    module = "profile_main" if words[0] == "sp-profile" else "run_main"
    code = (
        f"import sys; from sp_cli.{module} import cli\n"
        f"try: cli({[*words[1:], '--help']!r})\n"
        f"except SystemExit as end: assert end.code in (0, None)\n"
        f"print('LOADED', *[name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "Usage:" in done.stdout
    assert done.stdout.splitlines()[-1] == "LOADED"


@pytest.mark.parametrize(
    "words", [("sp-profile", "calibrate"), ("sp-run", "prefill")], ids=" ".join
)
def test_help_answers_at_once(words: tuple[str, ...]) -> None:
    """Processor time, best of five: a clock on the wall would measure the other tests."""
    resource = pytest.importorskip("resource")
    script = Path(sys.executable).with_name(words[0])
    best = float("inf")
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([str(script), *words[1:], "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        best = min(best, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    assert best < SECONDS


@pytest.mark.parametrize("program", ["sp-profile", "sp-run"])
def test_no_command_is_usage(program: str, command: Callable[..., Any]) -> None:
    done = command(program)
    assert done.code == 2
    assert "Usage:" in done.err
    assert done.out == ""


def test_env_says_which_kernels_run_and_why(command: Callable[..., Any]) -> None:
    done = command("sp-run", "env", "--device", "cpu", "--json")
    assert done.code == 0, done.err
    document = done.document()
    assert document["schema"] == "sp.env"
    assert document["kernels"]["name"] == "reference"
    assert document["kernels"]["reason"]
    assert document["packages"]["torch"]


@pytest.mark.parametrize("kernels", ["triton", "fa4"])
def test_explicit_kernels_never_fall_back(command: Callable[..., Any], kernels: str) -> None:
    done = command("sp-run", "env", "--device", "cpu", "--kernels", kernels, "--json")
    assert done.code == 2
    assert done.document()["error"]["code"] == "UNSUPPORTED"
