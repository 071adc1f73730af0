"""The workflow for users is valid YAML, and every command in it exists with its options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
import yaml
from sp_cli.profile_main import cli

ROOT = Path(__file__).parents[2]
WORKFLOW = ROOT / "docs" / "ci" / "profiles.yml"


def steps() -> list[dict]:
    document = yaml.safe_load(WORKFLOW.read_text("ascii"))
    return [step for job in document["jobs"].values() for step in job["steps"]]


def words_of(script: str) -> list[list[str]]:
    """The words of every `sp-profile` command of a shell script, redirections left out."""
    found = []
    for line in script.replace("\\\n", " ").splitlines():
        if "sp-profile" in line:
            command = re.split(r"[>|;&]", line[line.index("sp-profile") :])[0]
            found.append(shlex.split(re.sub(r"\$\{?\(?[A-Za-z_]+\)?\}?", "x", command)))
    return found


def options_exist(words: list[str]) -> None:
    """Raise click.UsageError where a command or option does not exist; runs nothing."""
    command = cli.commands[words[1]]
    with command.make_context(words[1], words[2:]):
        pass


def test_it_is_a_workflow():
    document = yaml.safe_load(WORKFLOW.read_text("ascii"))
    # YAML 1.1 reads the key `on` as true, and so does GitHub's own schema expect it to be.
    assert {"name", "jobs", "permissions"} <= document.keys()
    assert document.get("on", document.get(True)).keys() >= {"pull_request", "schedule"}
    for job in document["jobs"].values():
        assert job["runs-on"]
        assert job["timeout-minutes"] <= 120
    assert all(("uses" in step) != ("run" in step) for step in steps())


def test_its_commands_exist():
    commands = [words for step in steps() if "run" in step for words in words_of(step["run"])]
    assert [words[1] for words in commands] == ["verify", "calibrate", "cluster", "diff", "verify"]
    for words in commands:
        options_exist(words)


def test_the_commands_of_profiles_check_exist():
    text = (ROOT / "Makefile").read_text("utf-8")
    recipe = re.search(r"\nprofiles-check: \$\(TOOLS\)\n((?:\t.*\n)+)", text)[1]
    commands = words_of(recipe.replace("$$", "$").replace("$(DIFF_ARGS)", ""))
    assert [words[1] for words in commands] == ["verify", "calibrate", "cluster", "diff"]
    for words in commands:
        options_exist(words)


def test_an_option_that_is_gone_would_be_seen():
    with pytest.raises(click.UsageError):
        options_exist(["sp-profile", "diff", "a", "b", "--no-such-option"])
    with pytest.raises(KeyError):
        options_exist(["sp-profile", "no-such-command"])


def test_it_names_the_exit_codes_that_it_relies_on():
    from sp_cli.errors import CORRUPT, FINDINGS

    text = WORKFLOW.read_text("ascii")
    assert f"{CORRUPT} where a" in re.sub(r"\n# ", " ", text)
    assert f"{FINDINGS} where it" in re.sub(r"\n# ", " ", text)
