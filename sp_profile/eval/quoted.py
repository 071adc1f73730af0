"""Free text inside strict JSON, whose own strings hold printable characters alone."""

from __future__ import annotations

import json

from sp_runtime.errors import CorruptArtefactError


def quote(text: str) -> str:
    """A JSON string literal in ASCII: one line, printable."""
    return json.dumps(text)


def unquote(literal: str, name: str) -> str:
    """The text again; `name` starts the message of CorruptArtefactError."""
    try:
        text = json.loads(literal)
    except (ValueError, RecursionError) as error:
        raise CorruptArtefactError(f"{name}: is not a quoted text") from error
    if not isinstance(text, str):
        raise CorruptArtefactError(f"{name}: is not a quoted text")
    return text
