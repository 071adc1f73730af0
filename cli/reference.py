"""The reference of both programs as Markdown, made from the commands themselves.

`python -m sp_cli.reference FOLDER` writes it (`make reference`); a test compares it with
docs/reference.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from pathlib import Path

import click

from . import reference_text as text
from .profile_main import cli as profile_cli
from .program import key, settings_of, variable, walk
from .progress import Memory, ProgressLine
from .run_main import cli as run_cli

PROGRAMS = (profile_cli, run_cli)


def pages() -> dict[str, str]:
    """File name to Markdown."""
    return {
        "index.md": _index(),
        **{f"{program.name}.md": _program(program) for program in PROGRAMS},
        "configuration.md": _configuration(),
        "exit-codes.md": text.EXIT_CODES,
        "progress.md": _progress(),
    }


def _index() -> str:
    lines = [text.INDEX]
    for program in PROGRAMS:
        lines += [
            f"## {program.name}",
            "",
            f"[{program.name}]({program.name}.md): {_first(program)}",
        ]
        lines += ["", "| command | what it does |", "| --- | --- |"]
        for words, command in walk(program, (program.name or "",)):
            if command is not program and not isinstance(command, click.Group):
                name = " ".join(words[1:])
                lines.append(
                    f"| [{name}]({program.name}.md#{_anchor(words)}) | {_first(command)} |"
                )
        lines.append("")
    return "\n".join(lines)


def _program(program: click.Group) -> str:
    lines = [f"# {program.name}", ""]
    for words, command in walk(program, (program.name or "",)):
        if command is not program:
            lines += [f"{'#' * len(words)} {' '.join(words)}", ""]
        lines += [_usage(words, command), "", *_help(command)]
        if isinstance(command, click.Group):
            names = ", ".join(f"[{name}](#{_anchor((*words, name))})" for name in command.commands)
            lines += [f"Commands: {names}", ""]
        rows = [_row(each) for each in command.params if isinstance(each, click.Option)]
        if rows:
            lines += ["| option | value | what it does | default |", "| --- | --- | --- | --- |"]
            lines += [*rows, ""]
        if command.epilog:
            lines += [_escaped(command.epilog), ""]
    return "\n".join(lines)


def _usage(words: tuple[str, ...], command: click.Command) -> str:
    with click.Context(command, info_name=" ".join(words)) as context:
        return f"`{' '.join((' '.join(words), *command.collect_usage_pieces(context)))}`"


def _help(command: click.Command) -> list[str]:
    """The paragraphs of the help; those that keep their lines become blocks of code."""
    lines: list[str] = []
    for paragraph in _paragraphs(command):
        rows = paragraph.split("\n")
        if rows[0] != "\b":
            lines += [_escaped(" ".join(row.strip() for row in rows)), ""]
            continue
        title, block = ("", rows[1:]) if rows[1].startswith("  ") else (rows[1], rows[2:])
        if block and all(row.startswith("  ") for row in block):
            lines += [title, "", "```", *(row[2:] for row in block), "```", ""]
        else:
            lines += ["```", *rows[1:], "```", ""]
    return lines


def _row(option: click.Option) -> str:
    flags = ", ".join(f"`{flag}`" for flag in (*option.opts, *option.secondary_opts))
    if option.is_flag:
        value = ""
    elif isinstance(option.type, click.Choice):
        value = ", ".join(f"`{choice}`" for choice in option.type.choices)
    else:
        value = f"`{option.metavar or option.type.name.upper()}`"
    default = "required" if option.required else _default(option)
    return f"| {flags} | {value} | {_escaped(option.help or '')} | {default} |"


def _default(option: click.Option) -> str:
    with click.Context(click.Command("reference")) as context:
        shown = option.get_help_extra(context).get("default")
    return f"`{shown}`" if shown else ""


def _configuration() -> str:
    lines = [text.CONFIGURATION]
    for program in PROGRAMS:
        for words, command in walk(program, (program.name or "",)):
            if isinstance(command, click.Group):
                continue
            options = [each for each in settings_of(command) if each.name != "progress_mode"]
            if not options:
                continue
            lines += [f"### {' '.join(words)}", "", "| key | variable |", "| --- | --- |"]
            has_file = any(each.name == "config" for each in options)
            for each in options:
                name = f"`{key(each)}`" if has_file and each.name != "config" else ""
                lines.append(f"| {name} | `{variable(words, each)}` |")
            lines.append("")
    return "\n".join(lines)


def _progress() -> str:
    lines = [text.PROGRESS, "| field | type |", "| --- | --- |"]
    for field in dataclasses.fields(ProgressLine):
        lines.append(f"| `{field.name}` | `{_escaped(str(field.type))}` |")
    for field in dataclasses.fields(Memory):
        lines.append(f"| `memory.{field.name}` | `{_escaped(str(field.type))}` |")
    return "\n".join([*lines, "", " ".join((ProgressLine.__doc__ or "").split()), ""])


def _first(command: click.Command) -> str:
    """The first sentence of the help, whole."""
    return _escaped(" ".join(_paragraphs(command)[0].split()))


def _paragraphs(command: click.Command) -> list[str]:
    return inspect.cleandoc(command.help or "").split("\n\n")


def examples_of(command: click.Command) -> list[str]:
    """The command lines of the help's last block, one each."""
    title, *rows = _paragraphs(command)[-1].removeprefix("\b\n").split("\n")
    return "\n".join(rows).replace("\\\n", " ").splitlines() if title == "Examples:" else []


def _anchor(words: tuple[str, ...]) -> str:
    return "-".join(words)


def _escaped(text: str) -> str:
    """Text in a table cell: bars and tags are not Markdown's or HTML's."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def main(folder: Path) -> None:
    """Write every page into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, page in pages().items():
        (folder / name).write_text(page.rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
