"""The files of a model on disk: checked before they are used, and identified by their content."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from sp_runtime.errors import CorruptArtefactError, UsageError

_HASH_CHUNK = 1 << 22


def safetensors_files(folder: Path) -> list[Path]:
    """The weight files, each with a header that fits its length.

    Raises UsageError where there are none, CorruptArtefactError.
    """
    from safetensors import SafetensorError, safe_open

    files = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        check_json(folder, index.name)
        named = set(json.loads(index.read_bytes()).get("weight_map", {}).values())
        if absent := sorted(named - {file.name for file in files}):
            raise CorruptArtefactError(f"{folder}: {absent[0]} is missing")
    if not files:
        raise UsageError(
            f"{folder} holds no safetensors weights",
            hint="pickled weights are not loaded; convert them to safetensors",
        )
    for file in files:
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise CorruptArtefactError(f"{file}: {error}", hint="download it again") from error
    return files


def identify_safetensors(folder: Path) -> str:
    """SHA-256 over the sorted (name, SHA-256) lines of the weight files."""
    lines = "".join(f"{file.name} {sha256_file(file)}\n" for file in safetensors_files(folder))
    return hashlib.sha256(lines.encode()).hexdigest()


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_json(folder: Path, *names: str) -> None:
    """Raise CorruptArtefactError where one of these files is there and is not JSON."""
    for name in names:
        path = folder / name
        try:
            if path.is_file():
                json.loads(path.read_bytes())
        except (ValueError, RecursionError) as error:
            raise CorruptArtefactError(f"{path}: not valid JSON: {error}") from error
