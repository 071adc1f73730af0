"""Strict JSON for frozen dataclasses: bounded, every problem named by its path."""

from __future__ import annotations

import dataclasses
import errno
import functools
import json
import math
import os
import stat
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

from sp_runtime.errors import CorruptArtefactError, SpError, UsageError

MAX_BYTES = 64 << 20
MAX_DEPTH = 32
MAX_VALUES = 2_000_000
MAX_STRING = 1 << 16
MAX_INT = (1 << 53) - 1
_MAX_INT_DIGITS = 16
_MAX_FLOAT_DIGITS = 64
_T = TypeVar("_T")

OPTIONAL = types.MappingProxyType({"optional": True})
"""Metadata of a field that came later: it may be missing, and is left out at its default."""


def encode(value: object) -> str:
    """A dataclass or plain value as canonical JSON: sorted keys, ASCII, never NaN."""
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def encode_pretty(value: object) -> str:
    """The same for people: indented, in the order of the fields."""
    return json.dumps(plain(value), indent=1, allow_nan=False) + "\n"


def read_bytes(path: Path) -> bytes:
    """A regular file of at most MAX_BYTES; FileNotFoundError stays, the rest is typed."""
    name = str(path)
    try:
        # Opening a FIFO would wait for its writer, so it is refused first.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CorruptArtefactError(f"{name}: is not a regular file")
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = b"" if size > MAX_BYTES else file.read(MAX_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(errno.ENOENT, "no such file", name) from None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise CorruptArtefactError(f"{name}: the path is a cycle of symlinks") from error
        raise UsageError(f"{name}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL in the path
        raise UsageError(f"{name!r}: is not a path") from error
    if size > MAX_BYTES or len(data) > MAX_BYTES:
        raise CorruptArtefactError(f"{name}: is larger than {MAX_BYTES} bytes")
    return data


def parse(data: bytes, name: str) -> object:
    """JSON in UTF-8 without duplicate keys, NaN, huge numbers or deep nesting.

    Raises CorruptArtefactError that starts with `name`.
    """
    try:
        _check_shape(data)
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_int=_parse_int,
            parse_float=_parse_float,
        )
    except UnicodeDecodeError as error:
        raise CorruptArtefactError(f"{name}: byte {error.start} is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise CorruptArtefactError(f"{name}: not valid JSON: {error}") from error


def decode(cls: type[_T], value: object, name: str, *, ignore_unknown: bool = False) -> _T:
    """Build dataclass `cls` from parsed JSON by its type hints; every field must be there.

    name: the file, which starts every message. ignore_unknown: of a newer minor version.
    """
    return typing.cast("_T", _Decoder(name, ignore_unknown).decode(cls, value, ""))


def shown(value: object) -> str:
    """A value for a message, never long and never with control characters."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class _Decoder:
    def __init__(self, name: str, ignore_unknown: bool) -> None:
        self._name = name
        self._ignore_unknown = ignore_unknown

    def decode(self, hint: Any, value: object, path: str) -> object:
        origin, args = typing.get_origin(hint), typing.get_args(hint)
        if origin in (typing.Union, types.UnionType):
            (inner,) = (arg for arg in args if arg is not type(None))
            return None if value is None else self.decode(inner, value, path)
        if origin is Literal:
            if not isinstance(value, str) or value not in args:
                raise self._error(path, f"{shown(value)} is not one of {', '.join(args)}")
            return value
        if origin is tuple:
            return self._tuple(args, value, path)
        if dataclasses.is_dataclass(hint):
            return self._fields(hint, value, path)
        if issubclass(hint, tuple):
            items = self._tuple(tuple(_hints(hint).values()), value, path)
            return hint(*items)
        return self._scalar(hint, value, path)

    def _scalar(self, hint: type, value: object, path: str) -> object:
        if hint is float and type(value) is int:
            return float(value)
        if type(value) is not hint:  # so that a bool is no int
            raise self._error(path, f"expected {hint.__name__}, found {shown(value)}")
        if isinstance(value, str) and not (len(value) <= MAX_STRING and value.isprintable()):
            raise self._error(path, "the text is too long or has control characters")
        return value

    def _tuple(self, args: tuple[Any, ...], value: object, path: str) -> tuple[object, ...]:
        if not isinstance(value, list):
            raise self._error(path, f"expected a list, found {shown(value)}")
        hints = args[:1] * len(value) if len(args) == 2 and args[1] is Ellipsis else args
        if len(hints) != len(value):
            raise self._error(path, f"expected {len(hints)} items, found {len(value)}")
        return tuple(
            self.decode(hint, item, f"{path}[{number}]")
            for number, (hint, item) in enumerate(zip(hints, value, strict=True))
        )

    def _fields(self, cls: Any, value: object, path: str) -> object:
        if not isinstance(value, dict):
            raise self._error(path, f"expected an object, found {shown(value)}")
        hints = _hints(cls)
        for unknown in value:
            if unknown not in hints and not self._ignore_unknown:
                raise self._error(path, f"unknown field {shown(unknown)}")
        fields = {}
        for key, hint in hints.items():
            inner = f"{path}.{key}" if path else key
            if key not in value:
                if key in _optional(cls):
                    continue
                raise self._error(inner, "missing")
            fields[key] = self.decode(hint, value[key], inner)
        try:
            return cls(**fields)
        except SpError as error:
            raise self._error(path, error.message) from error

    def _error(self, path: str, problem: str) -> CorruptArtefactError:
        return CorruptArtefactError(f"{self._name}: {path or 'document'}: {problem}")


@functools.cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


@functools.cache
def _optional(cls: Any) -> frozenset[str]:
    return frozenset(f.name for f in dataclasses.fields(cls) if f.metadata.get("optional"))


def plain(value: object) -> Any:
    """A dataclass, and what it holds, as dicts and lists; optional fields at their default are
    left out, so that a format that gained a field still writes the same bytes."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            f.name: plain(getattr(value, f.name))
            for f in dataclasses.fields(value)
            if not (f.metadata.get("optional") and getattr(value, f.name) == f.default)
        }
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def _check_shape(data: bytes) -> None:
    """Bound depth and count before the parser allocates, in a few passes over the bytes."""
    if data.startswith(b"\xef\xbb\xbf"):
        raise ValueError("it starts with a byte order mark")
    # Without escapes, every second piece between quotes lies outside of strings.
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    keep = bare.translate(None, bytes(set(range(256)) - set(b'"[]{},')))
    if len(keep) > 4 * MAX_VALUES:
        raise ValueError(f"it holds more than {MAX_VALUES} values")
    outside = b"".join(keep.split(b'"')[::2])
    if outside.count(b",") + outside.count(b"[") + outside.count(b"{") > MAX_VALUES:
        raise ValueError(f"it holds more than {MAX_VALUES} values")
    brackets = outside.replace(b",", b"").translate(bytes.maketrans(b"{}", b"[]"))
    for _ in range(MAX_DEPTH):  # each pass takes the innermost level away
        brackets = brackets.replace(b"[]", b"")
    if b"[]" in brackets or brackets.count(b"[") > MAX_DEPTH:
        raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result: dict[str, object] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"duplicate key {shown(key)}")
        result[key] = value
    return result


def _refuse_constant(constant: str) -> object:
    raise ValueError(f"{constant} is not JSON")


def _parse_int(digits: str) -> int:
    if len(digits.lstrip("-")) > _MAX_INT_DIGITS or abs(int(digits)) > MAX_INT:
        raise ValueError(f"the integer {shown(digits)} is too large")
    return int(digits)


def _parse_float(digits: str) -> float:
    number = float(digits) if len(digits) <= _MAX_FLOAT_DIGITS else math.inf
    if not math.isfinite(number):
        raise ValueError(f"the number {shown(digits)} is too large or too long")
    return number
