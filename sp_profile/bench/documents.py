"""Results as JSON documents and files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sp_profile.atomic import publish_bytes
from sp_runtime.errors import UsageError


def document(
    schema: str, command: Sequence[str], rows: Sequence[Any], **more: Any
) -> dict[str, Any]:
    """The one document of a bench command.

    command: the words that made it. rows and values of `more`: frozen dataclasses, plain values or
    sequences of them; infinities do not occur.
    """
    return {
        "schema": schema,
        "schema_version": "1.0",
        "command": " ".join(command),
        **{name: _plain(value) for name, value in more.items()},
        "rows": [_plain(row) for row in rows],
    }


def check_json_target(path: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, a target that is no .json file or exists: UsageError."""
    if path.suffix != ".json":
        raise UsageError(f"{path}: results are one JSON document", hint="end the name in .json")
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="name a file")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists", hint="pass --overwrite, or name another file")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a folder", hint="make it first")


def write_document(path: Path, content: dict[str, Any]) -> None:
    """Publish it atomically as indented ASCII JSON."""
    text = json.dumps(content, indent=1, ensure_ascii=True, allow_nan=False)
    publish_bytes(path, text.encode("ascii") + b"\n")


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value
