"""Completion: a real bash, and what zsh and fish ask for."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def bash() -> str:
    found = shutil.which("bash")
    if found is None:
        pytest.skip("there is no bash")
    return found


def complete(bash: str, folder: Path, *words: str) -> list[str]:
    """What bash is offered for the last of `words`, after sourcing the script."""
    program = words[0]
    script = (
        f'eval "$({program} completion bash)"\n'
        "COMP_WORDS=(" + " ".join(f"'{word}'" for word in words) + ")\n"
        f"COMP_CWORD={len(words) - 1}\n"
        "compopt() { :; }\n"  # is for real completions only
        f"_{program.replace('-', '_')}_completion {program}\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    variables = {
        **os.environ,
        "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}",
        "HF_HUB_CACHE": str(folder / "hub"),
    }
    done = subprocess.run(
        [bash, "--norc", "-c", script], capture_output=True, text=True, env=variables, cwd=folder,
        timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.split()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with profiles, something that is none, and a cache of the hub."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("mine", "profiles/smol", "profiles/llama"):
        (folder / name).mkdir(parents=True)
        (folder / name / "profile.json").write_text("{}")
    (folder / "other").mkdir()
    (folder / "hub" / "models--Qwen--Qwen3-0.6B").mkdir(parents=True)
    return folder


CASES = {
    "commands": (("sp-run", "pre"), ["prefill"]),
    "commands of a group": (("sp-run", "bench", ""), ["kernel", "layer", "model"]),
    "options": (("sp-run", "prefill", "--kern"), ["--kernels"]),
    "choices": (("sp-run", "prefill", "--dtype", "b"), ["bfloat16"]),
    "aliases and the cache": (
        ("sp-profile", "calibrate", "--model", ""),
        ["smollm2-135m", "Qwen/Qwen3-0.6B"],
    ),
    "cached models": (("sp-run", "prefill", "--model", "Qw"), ["Qwen/Qwen3-0.6B"]),
    "profiles": (
        ("sp-run", "prefill", "--profile", ""),
        ["mine", "profiles/llama", "profiles/smol"],
    ),
    "profiles of a folder": (
        ("sp-profile", "verify", "profiles/"),
        ["profiles/llama", "profiles/smol"],
    ),
    "methods": (("sp-run", "prefill", "--method", "flex"), ["flexprefill"]),
    "methods of a list": (("sp-run", "eval", "--method", "plan,vert"), ["plan,vertical_slash"]),
}


@pytest.mark.parametrize(("words", "offered"), CASES.values(), ids=CASES)
def test_bash(words: tuple[str, ...], offered: list[str], bash: str, place: Path) -> None:
    assert complete(bash, place, *words) == offered


def test_tasks(bash: str, place: Path) -> None:
    from sp_profile.tasks import TASKS

    assert complete(bash, place, "sp-profile", "calibrate", "--task", "") == list(TASKS)


@pytest.mark.parametrize("program", ["sp-run", "sp-profile"])
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_by_their_protocol(
    program: str, shell: str, command: Callable[..., Any]
) -> None:
    script = command(program, "completion", shell)
    assert script.code == 0
    variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
    assert f"{variable}={shell}_complete" in script.out
    asked = {variable: f"{shell}_complete", "COMP_WORDS": f"{program} comp"}
    asked["COMP_CWORD"] = "1" if shell == "zsh" else "comp"
    done = command(program, **asked)
    assert done.code == 0
    assert "completion" in done.out


def test_an_unknown_shell_is_usage(command: Callable[..., Any]) -> None:
    done = command("sp-run", "completion", "tcsh")
    assert done.code == 2
    assert "tcsh" in done.error_line()
