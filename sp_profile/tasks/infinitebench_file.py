"""InfiniteBench's published JSON lines, read one at a time and strictly."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp_profile.tasks.task_files import field_of
from sp_runtime.errors import UsageError

_MAX_LINE_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One line of a file.

    where: the file and the line, for messages.
    context: the long text. input: the question or instruction. answers: as text, at least one.
    options: the four options of a multiple-choice question, else empty.
    """

    where: str
    context: str
    input: str
    answers: tuple[str, ...]
    options: tuple[str, ...]


def data_file(folder: Path | None, name: str, task: str) -> Path:
    """`name.jsonl` in the folder; raises UsageError, naming the task, where it is not there."""
    if folder is None:
        raise UsageError(
            f"task {task} reads {name}.jsonl of InfiniteBench, and no folder was given",
            hint="name the folder of the published JSON lines",
        )
    path = folder / f"{name}.jsonl"
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file; task {task} reads it",
            hint="the folder holds the files as published, such as passkey.jsonl",
        )
    return path


def read_examples(path: Path, *, with_options: bool) -> Iterator[Example]:
    """The examples in the order of the file; empty lines are skipped.

    Raises UsageError that names the line of the first problem.
    """
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(_MAX_LINE_BYTES + 1):
                number += 1
                where = f"{path}:{number}"
                if len(line) > _MAX_LINE_BYTES:
                    raise UsageError(f"{where}: longer than {_MAX_LINE_BYTES} bytes")
                if line.strip():
                    yield _example(line, where, with_options)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from error


def _example(line: bytes, where: str, with_options: bool) -> Example:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UsageError(f"{where}: not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: broken JSON: {error}") from error
    context = field_of(row, "context", str, where)
    if not context.strip():
        raise UsageError(f"{where}.context: is empty")
    options = _texts(row, "options", where) if with_options else ()
    if with_options and (len(options) != 4 or len(set(options)) != 4):
        raise UsageError(f"{where}.options: not four different options")
    answers = _texts(row, "answer", where)
    if not answers or not all(answer.strip() for answer in answers):
        raise UsageError(f"{where}.answer: is empty")
    question = field_of(row, "input", str, where) if "input" in row else ""
    return Example(where=where, context=context, input=question, answers=answers, options=options)


def _texts(row: Any, key: str, where: str) -> tuple[str, ...]:
    """A text or number, or a list of them, as texts."""
    value = field_of(row, key, (str, int, float, list), where)
    if not isinstance(value, list):
        return (str(value),)
    place = f"{where}.{key}"
    return tuple(
        str(field_of(value, index, (str, int, float), place)) for index in range(len(value))
    )
