"""Data files of tasks: read whole, strictly, with the task that needs them in every message."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sp_profile.tasks.eval_prompt import SAMPLE
from sp_runtime.errors import UsageError

_MAX_BYTES = 1 << 30
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskFile:
    """A text file. name: for messages. origin: SAMPLE or the sha256 of its bytes."""

    name: str
    text: str
    origin: str


def read_task_file(path: Path | None, task: str, sample: str) -> TaskFile:
    """The user's file, or for None the sample of that name that ships with the package.

    Raises UsageError, naming the task, where the file is missing, too large or not UTF-8 text.
    """
    if path is None:
        data = resources.files("sp_profile.tasks").joinpath("data", sample).read_bytes()
        return TaskFile(name=sample, text=data.decode("utf-8"), origin=SAMPLE)
    data = _read(path, task)
    return TaskFile(
        name=str(path), text=_decode(data, path, task), origin=hashlib.sha256(data).hexdigest()
    )


def parse_json(file: TaskFile) -> Any:
    """The file's JSON; raises UsageError with the place of the problem."""
    try:
        return json.loads(file.text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file.name}: not valid JSON: {error}") from error


def field_of(value: Any, key: Any, kind: type | tuple[type, ...], where: str) -> Any:
    """`value[key]` of the given kind; raises UsageError that names its place.

    key: a name of an object, or an index of an array.
    """
    place = f"{where}[{key}]" if isinstance(key, int) else f"{where}.{key}"
    container = list if isinstance(key, int) else dict
    if not isinstance(value, container):
        raise UsageError(f"{where}: not a JSON {'array' if container is list else 'object'}")
    found: Any
    try:
        found = value[key]
    except (KeyError, IndexError):
        raise UsageError(f"{place}: is missing") from None
    kinds = kind if isinstance(kind, tuple) else (kind,)
    # bool is an int to Python, and never what a data file means by a number.
    if not isinstance(found, kind) or (isinstance(found, bool) and bool not in kinds):
        names = " or ".join(_JSON_NAMES[each] for each in kinds)
        raise UsageError(f"{place}: not {names}")
    if isinstance(found, str) and _is_broken(found):
        raise UsageError(f"{place}: holds half a surrogate pair")
    return found


_JSON_NAMES = {
    str: "a string", list: "an array", dict: "an object", int: "a whole number",
    float: "a number", bool: "true or false",
}  # fmt: skip


def _is_broken(text: str) -> bool:
    """Whether JSON escapes left a lone surrogate, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _read(path: Path, task: str) -> bytes:
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path}: is not a file", hint=f"task {task} reads it")
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(
            f"{path}: no such file; task {task} reads it",
            hint="give another file, or leave it out for the built-in sample",
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: cannot be read, and task {task} needs it: {error}") from error
    if len(data) > _MAX_BYTES:
        raise UsageError(f"{path}: larger than {_MAX_BYTES} bytes", hint=f"task {task} reads it")
    return data


def _decode(data: bytes, path: Path, task: str) -> str:
    offset = data.find(b"\0")
    if offset >= 0:
        raise UsageError(f"{path}: NUL at byte {offset}", hint=f"task {task} needs UTF-8 text")
    start = len(_BOM) if data.startswith(_BOM) else 0
    try:
        text = data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path}: not UTF-8 at byte {start + error.start}", hint=f"task {task} reads it"
        ) from error
    if not text.strip():
        raise UsageError(f"{path}: the file is empty", hint=f"task {task} needs its text")
    return text.replace("\r\n", "\n")
