"""Members of an `.npz` archive, read without trusting anything that it says of itself."""

from __future__ import annotations

import re
import zipfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp_runtime.errors import CorruptArtefactError

_MAX_DIRECTORY_BYTES = 1 << 14
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(?P<dtype>[<>](?:[iu][248]|f[248])|[|][iub]1)', "
    rb"'fortran_order': (?P<fortran>True|False), "
    rb"'shape': \((?P<shape>(?:\d{1,9}, ?)*(?:\d{1,9})?)\), \} *\n",
    re.DOTALL,
)
_END_BYTES, _LOCATOR_BYTES = 22, 20  # of the end record, and of zip64's locator before it


def check_directory(data: bytes) -> None:
    """Bound the directory before zipfile lists it: it is as long as it says, not as we wrote it."""
    end = data[-_END_BYTES:]
    locator = data[-_END_BYTES - _LOCATOR_BYTES : -_END_BYTES]
    if not end.startswith(b"PK\x05\x06") or locator.startswith(b"PK\x06\x07"):
        raise ValueError("it does not end as it should")
    if int.from_bytes(end[12:16], "little") > _MAX_DIRECTORY_BYTES:
        raise ValueError("its directory is too large")


def read_member(
    archive: zipfile.ZipFile, sizes: dict[str, int], name: str, field: str, limit: int
) -> NDArray[Any]:
    filename = f"{field}.npy"
    if filename not in sizes:
        raise field_error(name, field, "is missing")
    if sizes[filename] > limit:
        raise field_error(name, field, f"takes {sizes[filename]} bytes, more than {limit}")
    with archive.open(filename) as member:
        data = member.read(limit + 1)
    return _array(data, name, field)


def _array(data: bytes, name: str, field: str) -> NDArray[Any]:
    """The array of an npy file. Its header is matched, never evaluated as Python, which is what
    NumPy does with it; and nothing is allocated for what it claims."""
    match = _NPY.match(data)
    if match is None or int.from_bytes(data[8:10], "little") != match.end() - 10:
        raise field_error(name, field, "has a damaged npy header")
    dtype = np.dtype(match["dtype"].decode("ascii"))
    shape = tuple(int(size) for size in match["shape"].replace(b" ", b"").split(b",") if size)
    body = memoryview(data)[match.end() :]
    if match["fortran"] == b"True" or size_in_bytes(dtype, shape) != len(body):
        raise field_error(name, field, "has a header that does not match its data")
    return np.frombuffer(body, dtype=dtype).reshape(shape)


def size_in_bytes(dtype: Any, shape: tuple[int, ...]) -> int:
    count = np.dtype(dtype).itemsize
    for size in shape:
        count *= size
    return count


def field_error(name: str, field: str, problem: str) -> CorruptArtefactError:
    return CorruptArtefactError(f"{name}: {field} {problem}")
