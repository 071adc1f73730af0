"""The reference is that of the commands, and every example in a help text can be run."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

import click
import pytest
from sp_cli import point_options
from sp_cli.program import key, settings_of, variable, walk
from sp_cli.reference import PROGRAMS, examples_of, pages

from sp_runtime.operating_point import OperatingPoint

DOCS = Path(__file__).parents[2] / "docs" / "reference"
COMMANDS = [
    (words, command) for program in PROGRAMS for words, command in walk(program, (program.name,))
]
NAMES = [" ".join(words) for words, _ in COMMANDS]


@pytest.mark.parametrize("name", sorted(pages()))
def test_the_reference_is_that_of_the_commands(name: str) -> None:
    """Where this fails: `make reference`."""
    assert (DOCS / name).read_text(encoding="utf-8") == pages()[name].rstrip() + "\n"


def test_there_is_no_other_page() -> None:
    assert {file.name for file in DOCS.glob("*.md")} == set(pages())


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=NAMES)
def test_every_example_parses(
    words: tuple[str, ...],
    command: click.Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    examples = examples_of(command)
    assert examples, f"{' '.join(words)} --help shows no example"
    for example in examples:
        program, *arguments = shlex.split(example)
        for number, word in enumerate(arguments):
            if word == "--config":
                Path(arguments[number + 1]).touch()
        parse(next(each for each in PROGRAMS if each.name == program), [*arguments])
    assert shlex.split(examples[0])[: len(words)] == list(words)


def parse(command: click.Command, words: list[str]) -> None:
    """As click does before it runs the command; a usage error fails the test."""
    context = None
    name = command.name
    while isinstance(command, click.Group):
        context = click.Context(command, info_name=name, parent=context)
        name = words.pop(0)
        command = command.commands[name]
    command.make_context(name, words, parent=context)


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=NAMES)
def test_a_list_of_commands_shows_first_sentences_whole(
    words: tuple[str, ...], command: click.Command
) -> None:
    if isinstance(command, click.Group):
        longest = max(map(len, command.commands))
        for child in command.commands.values():
            assert not child.get_short_help_str(80 - 6 - longest).endswith("..."), child.name


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=NAMES)
def test_every_option_says_what_it_does(words: tuple[str, ...], command: click.Command) -> None:
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{' '.join(words)} {option.opts[0]}"
            is_number = isinstance(option.type, (click.types.IntParamType, click.FLOAT.__class__))
            assert option.metavar or option.is_flag or not is_number, option.opts


def test_no_two_options_share_a_variable_or_a_key() -> None:
    seen: set[str] = set()
    for words, command in COMMANDS:
        options = [each for each in settings_of(command) if each.name != "progress_mode"]
        names = {variable(words, each) for each in options}
        assert len(names) == len(options) == len({key(each) for each in options})
        assert not seen & names
        seen |= names


def test_every_number_of_an_operating_point_has_an_option() -> None:
    numbers = {
        field.name
        for field in dataclasses.fields(OperatingPoint)
        if str(field.type).removesuffix(" | None") in ("int", "float")
    }
    assert set(point_options.NAMES) == numbers


def test_commands_of_many_options_take_a_file() -> None:
    for words, command in COMMANDS:
        options = [each for each in settings_of(command) if each.name != "progress_mode"]
        if len(options) > 6:
            assert any(each.name == "config" for each in options), " ".join(words)
