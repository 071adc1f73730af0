"""Every command line and option in the pages exists, and no command or method is left out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from sp_cli.profile_main import cli as sp_profile
from sp_cli.run_main import cli as sp_run

from sp_runtime.method_spec import fields_of
from sp_runtime.operating_point import METHODS, RULES, OperatingPoint, default_point

ROOT = Path(__file__).parents[2]
PROGRAMS = {"sp-profile": sp_profile, "sp-run": sp_run}
_LINE = re.compile(
    r"^(?:\$ )?(?:torchrun .*--no-python )?((?:sp-run|sp-profile)\b.*)$", re.MULTILINE
)
_CODE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
_OTHERS = {"--standalone", "--nproc-per-node", "--no-python"}  # torchrun's


def commands(page) -> list[str]:
    blocks = [block.replace("\\\n", " ") for block in page.blocks]
    return [line for block in blocks for line in _LINE.findall(block)]


def parse(line: str) -> None:
    """Parse a command line without running it; raises click.UsageError or KeyError."""
    program, *words = shlex.split(line, comments=True)
    command: click.Command = PROGRAMS[program]
    while isinstance(command, click.Group):
        if not words or words[0] in ("--version", "--help"):
            return
        command = command.commands[words.pop(0)]
    if not {"-h", "--help"} & {*words}:
        command.make_context(command.name, words).close()


def leaves(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        yield words
        return
    for name, each in command.commands.items():
        yield from leaves(each, (*words, name))


def options(command: click.Command) -> set[str]:
    found = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    children = command.commands.values() if isinstance(command, click.Group) else ()
    return found.union({"--help"}, *(options(each) for each in children))


def specs() -> dict[str, OperatingPoint]:
    """Every method as the pages write it, with its published constants."""
    plain = {name: default_point(name) for name in METHODS if name != "share"}  # type: ignore[arg-type]
    rules = {f"share:{rule}": default_point("share", rule) for rule in RULES}  # type: ignore[arg-type]
    return plain | {"plan": rules.pop("share:plan")} | rules


@pytest.fixture
def somewhere(tmp_path, monkeypatch):
    """A folder with the settings files that the pages name."""
    for name in ("eval.toml", "calibrate.toml", "prefill.toml"):
        (tmp_path / name).write_text("", "ascii")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("somewhere")
def test_every_command_line_parses(pages):
    problems, count = [], 0
    for page in pages:
        for line in commands(page):
            count += 1
            try:
                parse(line)
            except (click.ClickException, KeyError, ValueError) as error:
                problems.append(f"{page.name}: {line}\n  {error}")
    assert count > 30
    assert not problems, "\n".join(problems)


def test_every_option_named_in_the_text_exists(pages):
    known = options(sp_run) | options(sp_profile) | _OTHERS
    problems = [
        f"{page.name}: {option}"
        for page in pages
        for code in _CODE.findall(page.prose)
        if not code.startswith(
            ("pip ", "python ", "make ", "minisign ", "compute-sanitizer", "gpu_check")
        )
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", code)
        if option not in known
    ]
    assert not problems, "\n".join(problems)


def test_every_command_is_mentioned(site_pages):
    text = "\n".join(page.text for page in site_pages)
    known = [*leaves(sp_profile, ("sp-profile",)), *leaves(sp_run, ("sp-run",))]
    assert len(known) > 12
    missing = [" ".join(words) for words in known if " ".join(words) not in text]
    assert missing == []


def test_the_table_of_methods_is_that_of_the_code():
    page = (ROOT / "docs" / "choose-a-method.md").read_text("utf-8")
    section = page.split("## All methods")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    found = {row[0].strip("`"): dict(re.findall(r"(\w+)=(\S+)", row[3])) for row in rows}
    shared = set.intersection(*(set(fields_of(p)) for n, p in specs().items() if n != "dense"))
    wanted = {
        name: {
            key: {None: "none", "": '""'}.get(getattr(point, key), str(getattr(point, key)))
            for key in fields_of(point)
            if key not in shared
        }
        for name, point in specs().items()
    }
    assert found == wanted
    said = dict(re.findall(r"(\w+)=(\w+)", section.split("All but `dense`")[1]))
    assert said == {key: str(getattr(OperatingPoint(), key)) for key in shared}


@pytest.mark.parametrize(
    "line",
    [
        "sp-run prefill --no-such-option",
        "sp-profile nothing",
        "sp-run prefill",
        "sp-run bench kernel --length 0",
    ],
)
def test_a_wrong_line_would_be_seen(line):
    with pytest.raises((click.ClickException, KeyError)):
        parse(line)
