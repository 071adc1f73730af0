"""`--config file.toml`, and the settings of a command with where each of them came from.

A flag goes over the environment, the environment over the file, the file over the default.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from sp_runtime.errors import UsageError, nearest

from .program import CONFIG, PROGRESS, command_words, key, settings_of, walk

_MAX_BYTES = 1 << 20
_FILE = "sp.config_file"  # where the context keeps the name of its file
# Where a run lies is no part of what it is: artefacts are copied and published.
_PLACES = frozenset({"model", "profile", "prompts"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One option: its key, its value (None: unset), whose it is, and whether it names a place.

    source: flag, environment, file or default. where: the variable's or the file's name.
    """

    name: str
    value: bool | int | float | str | tuple[Any, ...] | None
    source: str
    where: str
    is_place: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """The resolved configuration of a command. words: the command, without the program."""

    words: tuple[str, ...]
    settings: tuple[Setting, ...]

    def toml(self, *, sources: bool = False) -> str:
        """A file that `--config` takes; with `sources` a comment a line says where it is from.

        Without sources it is meant for an artefact, and leaves out what names a place.
        """
        rows = [
            (f"{each.name} = {_toml(each.value)}", each)
            for each in self.settings
            if each.value not in (None, ()) and (sources or not each.is_place)
        ]
        lines = [f"[{'.'.join(self.words)}]"]
        width = max((len(text) for text, _ in rows), default=0)
        for text, each in rows:
            where = f" {each.where}" if each.where else ""
            lines.append(f"{text:<{width}}  # {each.source}{where}" if sources else text)
        unset = [each.name for each in self.settings if each.value in (None, ())]
        if sources and unset:
            lines.append(f"# unset: {', '.join(unset)}")
        return "\n".join(lines) + "\n"

    def values(self) -> dict[str, Any]:
        """Key to value, for a document that keeps them."""
        return {each.name: each.value for each in self.settings}

    def document(self) -> dict[str, Any]:
        """The same as the document of `--show-config --json`."""
        rows = [
            {"name": each.name, "value": each.value, "source": each.source, "where": each.where}
            for each in self.settings
        ]
        return {"schema": "sp.config", "command": " ".join(self.words), "settings": rows}


def resolved_settings(context: click.Context | None = None) -> Settings:
    """The settings of the command that is running."""
    context = context or click.get_current_context()
    return Settings(
        words=command_words(context)[1:],
        settings=tuple(
            _setting(context, option)
            for option in settings_of(context.command)
            if option.name not in (CONFIG, PROGRESS)
        ),
    )


def load_config(context: click.Context, file: Path) -> None:
    """Make the settings in `file` the defaults of the command; UsageError names file and key."""
    context.default_map = read_config(file, context)
    context.meta[_FILE] = str(file)


def read_config(file: Path, context: click.Context) -> dict[str, Any]:
    """Parameter name to value, checked, of what `file` says to the command of `context`.

    Keys at the top are for every command of the file that has such an option, those in a table
    such as `[calibrate]` or `[bench.kernel]` for that command. Raises UsageError.
    """
    words = command_words(context)[1:]
    data = _parse(file)
    commands = _commands(context)
    own = _options(context.command)
    top = {name: value for name, value in data.items() if not isinstance(value, dict)}
    found: dict[str, Any] = {}
    elsewhere: set[str] = set()
    for path, table in _tables(data, ()):
        command = commands.get(path)
        if command is None:
            if any(known[: len(path)] == path for known in commands):
                continue  # a group's table: its commands' tables are in it
            hint = nearest(".".join(path), [".".join(known) for known in commands])
            raise UsageError(f"{file}: table [{'.'.join(path)}] is no command", hint=hint)
        options = _options(command)
        elsewhere |= options.keys()
        for name, value in table.items():
            if name not in options:
                raise _unknown(file, f"{'.'.join(path)}.{name}", name, options)
            if path == words:
                found[options[name].name or ""] = _checked(context, file, options[name], value)
    for name, value in top.items():
        if name in own:
            found.setdefault(own[name].name or "", _checked(context, file, own[name], value))
        elif name not in elsewhere:
            raise _unknown(file, name, name, own)
    return found


def _tables(
    data: Mapping[str, Any], path: tuple[str, ...]
) -> list[tuple[tuple[str, ...], dict[str, Any]]]:
    """(path, keys that are no tables themselves) of every table."""
    found = []
    for name, value in data.items():
        if isinstance(value, dict):
            keys = {key: each for key, each in value.items() if not isinstance(each, dict)}
            found.append(((*path, name), keys))
            found += _tables(value, (*path, name))
    return found


def _commands(context: click.Context) -> dict[tuple[str, ...], click.Command]:
    """Every command of both programs by its words: one file may serve all."""
    from .profile_main import cli as profile
    from .run_main import cli as run

    roots = (profile, run, context.find_root().command)
    found = {words[1:]: command for root in roots for words, command in walk(root, ("",))}
    found = {words: each for words, each in found.items() if not isinstance(each, click.Group)}
    return {**found, command_words(context)[1:]: context.command}


def _options(command: click.Command) -> dict[str, click.Option]:
    return {
        key(option): option
        for option in settings_of(command)
        if option.name not in (CONFIG, PROGRESS)
    }


def _unknown(file: Path, where: str, name: str, known: Mapping[str, object]) -> UsageError:
    hint = nearest(name, known) or "keys are the command's long options; --help lists them"
    return UsageError(f"{file}: unknown key {where!r}", hint=hint)


def _parse(file: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    with open(file, "rb") as opened:
        data = opened.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{file}: over {_MAX_BYTES} bytes", hint="is it a configuration?")
    try:
        parsed: dict[str, Any] = tomllib.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: byte {error.start} is not UTF-8", hint="save it so") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        hint = 'lines such as: block-size = 64, or task = ["json_kv"]'
        raise UsageError(f"{file}: not TOML: {error}", hint=hint) from error
    return parsed


def _checked(context: click.Context, file: Path, option: click.Option, value: Any) -> Any:
    """The value as click takes it; it converts "5" and 5.5 to 5, and a file should say 5."""
    name = key(option)
    several = option.multiple
    values = value if several and isinstance(value, list) else [value]
    kind = _kind(option)
    for each in values:
        right = isinstance(each, kind) and (isinstance(each, bool) == (kind == (bool,)))
        if not right or (isinstance(each, float) and not math.isfinite(each)):
            what = f"{'a list of, or ' if several else ''}{_NAMES[kind]}"
            message = f"{file}: {name} = {_shown(value)} is not {what}"
            raise UsageError(message, hint=option.help)
    try:
        option.type_cast_value(context, values if several else value)
    except click.BadParameter as error:
        raise UsageError(f"{file}: {name}: {error.message}", hint=option.help) from error
    return values if several else value


_NAMES = {
    (bool,): "true or false",
    (int,): "a whole number",
    (int, float): "a number",
    (int, str): "a whole number, or several as text: '1,2'",
    (str,): "text in quotes",
}


def _kind(option: click.Option) -> tuple[type, ...]:
    if option.is_flag:
        return (bool,)
    if isinstance(option.type, (click.types.IntParamType, click.IntRange)):
        return (int,)
    if isinstance(option.type, (click.types.FloatParamType, click.FloatRange)):
        return (int, float)
    if option.type.name == "integers":
        return (int, str)
    return (str,)


def _setting(context: click.Context, option: click.Option) -> Setting:
    source = context.get_parameter_source(option.name or "")
    where = ""
    if source is ParameterSource.ENVIRONMENT:
        where = str(option.envvar)
    elif source is ParameterSource.DEFAULT_MAP:
        where = context.meta[_FILE]
    return Setting(
        name=key(option),
        value=_plain(context.params.get(option.name or "")),
        source="default" if source is None else _SOURCES.get(source, "default"),
        where=where,
        is_place=option.name in _PLACES or isinstance(option.type, click.Path),
    )


_SOURCES = {
    ParameterSource.COMMANDLINE: "flag",
    ParameterSource.ENVIRONMENT: "environment",
    ParameterSource.DEFAULT_MAP: "file",
    ParameterSource.PROMPT: "flag",
}


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return tuple(_plain(each) for each in value)
    return os.fspath(value) if isinstance(value, Path) else value


def _toml(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(_toml(each) for each in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's escapes are TOML's; DEL alone is TOML's to escape.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return repr(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
