"""The header of a GGUF file, read once and checked: metadata positions and the tensor table.

Format: the GGUF specification of ggml, versions 2 and 3, little endian.
"""

from __future__ import annotations

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from sp_runtime.errors import CorruptArtefactError, UnsupportedError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_STRING, _ARRAY = 8, 9
_WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_MAX_FIELDS, _MAX_TENSORS, _MAX_DIMS, _MAX_NAME = 1 << 16, 1 << 20, 8, 1 << 16
_ALIGNMENT_KEY = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufTensor:
    """One entry of the tensor table.

    shape: in torch order, elements. kind: ggml type number. offset: from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclass(frozen=True, kw_only=True, slots=True)
class GgufHeader:
    """Everything before the tensor data.

    architecture: `general.architecture`. fields: raw bytes of each metadata field, key and type
    included, in file order.
    """

    path: Path
    version: int
    architecture: str
    fields: tuple[tuple[str, bytes], ...]
    tensors: tuple[GgufTensor, ...]

    def without_vocabulary(self) -> bytes:
        """A whole, tiny GGUF file of the same model without its vocabulary and its weights.

        The tensors keep their names, by which a config is told, and hold one zero each.
        """
        kept = [raw for key, raw in self.fields if not _is_vocabulary(key, raw)]
        parts = [_MAGIC, struct.pack("<IQQ", self.version, len(self.tensors), len(kept)), *kept]
        for tensor in self.tensors:
            name = tensor.name.encode("utf-8")
            parts += [struct.pack("<Q", len(name)), name, struct.pack("<IQIQ", 1, 1, 0, 0)]
        return b"".join(parts) + bytes(2 * 4096)


def _is_vocabulary(key: str, raw: bytes) -> bool:
    """Whether a field is one of the tokenizer's arrays: tokens, merges, scores, types."""
    at = 8 + len(key.encode("utf-8"))
    return key.startswith("tokenizer.") and raw[at : at + 4] == struct.pack("<I", _ARRAY)


def read_header(path: Path) -> GgufHeader:
    """Read and check a header; every tensor must begin inside the file.

    Raises CorruptArtefactError (truncated, damaged, not GGUF), UnsupportedError (version).
    """
    try:
        with open(path, "rb") as file:
            try:
                data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except ValueError as error:  # an empty file cannot be mapped
                raise CorruptArtefactError(f"{path}: the file is empty") from error
    except OSError as error:
        raise CorruptArtefactError(f"{path}: cannot be read: {error.strerror}") from error
    with data:
        return _Cursor(data, path).header()


class _Cursor:
    """Sequential reads that never leave the file."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self._data = data
        self._path = path
        self._at = 0

    def header(self) -> GgufHeader:
        if self._data[:4] != _MAGIC:
            raise self._corrupt("it does not start with GGUF")
        self._at = 4
        version = self._unpack("<I")
        if version not in _VERSIONS:
            raise UnsupportedError(
                f"{self._path}: GGUF version {version} is not supported",
                hint="convert it again with a recent llama.cpp",
            )
        num_tensors = self._count("<Q", _MAX_TENSORS, "tensors")
        num_fields = self._count("<Q", _MAX_FIELDS, "metadata fields")
        fields = tuple(self._field() for _ in range(num_fields))
        by_key = dict(fields)
        entries = [self._tensor() for _ in range(num_tensors)]
        alignment = _DEFAULT_ALIGNMENT
        if _ALIGNMENT_KEY in by_key:
            alignment = struct.unpack("<I", by_key[_ALIGNMENT_KEY][-4:])[0]
        if alignment < 1 or alignment & (alignment - 1):
            raise self._corrupt(f"{_ALIGNMENT_KEY} is not a power of two")
        start = -(-self._at // alignment) * alignment
        tensors = tuple(
            GgufTensor(name=name, shape=shape, kind=kind, offset=start + offset)
            for name, shape, kind, offset in entries
        )
        self._check_extents(tensors)
        if "general.architecture" not in by_key:
            raise self._corrupt("general.architecture is missing")
        # key length, key, type, value length: 8 + 20 + 4 + 8 bytes
        architecture = by_key["general.architecture"][40:].decode("utf-8", "replace")
        return GgufHeader(
            path=self._path,
            version=version,
            architecture=architecture,
            fields=fields,
            tensors=tensors,
        )

    def _check_extents(self, tensors: tuple[GgufTensor, ...]) -> None:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        for tensor in tensors:
            try:
                block, size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.kind)]
            except (ValueError, KeyError) as error:
                raise self._corrupt(f"{tensor.name} has unknown type {tensor.kind}") from error
            end = tensor.offset + math.prod(tensor.shape) // block * size
            if end > len(self._data):
                raise self._corrupt(
                    f"truncated: {tensor.name} ends at byte {end} of {len(self._data)}"
                )

    def _field(self) -> tuple[str, bytes]:
        start = self._at
        key = self._string()
        self._skip_value(self._unpack("<I"), 0)
        return key, self._data[start : self._at]

    def _skip_value(self, kind: int, depth: int) -> None:
        if kind in _WIDTHS:
            self._take(_WIDTHS[kind])
        elif kind == _STRING:
            self._take(self._unpack("<Q"))
        elif kind == _ARRAY and depth < 4:
            item, count = self._unpack("<I"), self._count("<Q", len(self._data), "items")
            if item in _WIDTHS:
                self._take(_WIDTHS[item] * count)
                return
            if item == _STRING:
                self._skip_strings(count)
                return
            for _ in range(count):
                self._skip_value(item, depth + 1)
        else:
            raise self._corrupt(f"metadata of unknown type {kind}")

    def _skip_strings(self, count: int) -> None:
        """A vocabulary has hundreds of thousands: a plain loop, checked like `_take`."""
        at, end, data, length = self._at, len(self._data), self._data, _LENGTH.unpack_from
        for _ in range(count):
            if at + 8 > end:
                raise self._corrupt(f"truncated at byte {end} in its header")
            at += 8 + length(data, at)[0]
        self._at = at
        self._take(0)

    def _tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self._string()
        num_dims = self._count("<I", _MAX_DIMS, "dimensions")
        shape = tuple(self._unpack("<Q") for _ in range(num_dims))[::-1]
        return name, shape, self._unpack("<I"), self._unpack("<Q")

    def _string(self) -> str:
        length = self._count("<Q", _MAX_NAME, "characters in a name")
        start = self._take(length)
        try:
            return self._data[start : self._at].decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._corrupt("a name is not UTF-8") from error

    def _count(self, form: str, limit: int, what: str) -> int:
        count = self._unpack(form)
        if count > limit:
            raise self._corrupt(f"{count} {what}, more than {limit}")
        return count

    def _unpack(self, form: str) -> int:
        start = self._take(struct.calcsize(form))
        (value,) = struct.unpack_from(form, self._data, start)
        return int(value)

    def _take(self, size: int) -> int:
        start, self._at = self._at, self._at + size
        if self._at > len(self._data):
            raise self._corrupt(f"truncated at byte {len(self._data)} in its header")
        return start

    def _corrupt(self, problem: str) -> CorruptArtefactError:
        return CorruptArtefactError(f"{self._path}: {problem}", hint="download the file again")
