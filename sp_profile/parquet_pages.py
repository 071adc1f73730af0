"""The page headers of a Parquet file, read before Arrow unpacks anything.

Arrow allocates what a page header claims, and checks a page's checksum only where there is one.
So every header is read here first: the claimed sizes must add up to no more than the table can
need, and no page may lack its checksum. Source: the Parquet format's `PageHeader`, in Thrift's
compact protocol.
"""

from __future__ import annotations

import os
from typing import IO

import pyarrow.parquet as pq

from sp_runtime.errors import CorruptArtefactError

_HEADER_BYTES = 1 << 14
_MAX_DEPTH = 8
_UNCOMPRESSED, _COMPRESSED, _CRC = 2, 3, 4  # field numbers of PageHeader
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 0, 1, 2, 3, 7, 8, 9, 10, 12
_VARINTS = (4, 5, 6)  # i16, i32, i64


def check_pages(file: IO[bytes], metadata: pq.FileMetaData, *, max_bytes: int, name: str) -> None:
    """Raise CorruptArtefactError unless every page has a checksum and they unpack to max_bytes.

    file: read at other places and left where it was.
    """
    place = file.tell()
    size = os.fstat(file.fileno()).st_size
    left = max_bytes
    for group in range(metadata.num_row_groups):
        for column in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(column)
            where = f"{name}: row group {group}, {chunk.path_in_schema}"
            start, length = _extent(chunk)
            if not 0 <= start <= start + length <= size:
                raise CorruptArtefactError(f"{where}: lies outside of the file")
            left = _check_chunk(file, start, start + length, left, where)
    file.seek(place)


def _extent(chunk: pq.ColumnChunkMetaData) -> tuple[int, int]:
    """Where Arrow reads the chunk's pages from, and how many bytes."""
    start = int(chunk.data_page_offset)
    dictionary = chunk.dictionary_page_offset
    if chunk.has_dictionary_page and dictionary is not None and 0 < dictionary < start:
        start = int(dictionary)
    return start, int(chunk.total_compressed_size)


def _check_chunk(file: IO[bytes], start: int, stop: int, left: int, where: str) -> int:
    """What is left of the budget after the pages in [start, stop)."""
    while start < stop:
        file.seek(start)
        header = _Header(file.read(_HEADER_BYTES), where)
        unpacked, packed = header.fields.get(_UNCOMPRESSED, -1), header.fields.get(_COMPRESSED, -1)
        if unpacked < 0 or packed < 0 or start + header.length + packed > stop:
            raise CorruptArtefactError(f"{where}: a page's sizes do not fit its column")
        if _CRC not in header.fields:
            raise CorruptArtefactError(f"{where}: a page has no checksum")
        left -= unpacked
        if left < 0:
            raise CorruptArtefactError(f"{where}: its pages unpack to more than the table needs")
        start += header.length + packed
    return left


class _Header:
    """fields: the integers of one PageHeader by number. length: its bytes."""

    def __init__(self, data: bytes, where: str) -> None:
        self._data = data
        self._where = where
        self.length = 0
        self.fields: dict[int, int] = {}
        self._struct(0)

    def _struct(self, depth: int) -> None:
        number = 0
        while (head := self._byte()) != _STOP:
            kind, delta = head & 15, head >> 4
            number = number + delta if delta else self._zigzag()
            if depth == 0 and kind in _VARINTS:
                self.fields[number] = self._zigzag()
            elif kind not in (_TRUE, _FALSE):  # a field's type is then its value
                self._skip(kind, depth)

    def _skip(self, kind: int, depth: int) -> None:
        if depth >= _MAX_DEPTH:
            raise self._error()
        if kind in _VARINTS:
            self._varint()
        elif kind in (_TRUE, _FALSE, _BYTE):
            self._byte()
        elif kind == _DOUBLE:
            self._advance(8)
        elif kind == _BINARY:
            self._advance(self._varint())
        elif kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4
            for _ in range(self._varint() if count == 15 else count):
                self._skip(head & 15, depth + 1)
        elif kind == _STRUCT:
            self._struct(depth + 1)
        else:
            raise self._error()

    def _byte(self) -> int:
        self._advance(1)
        return self._data[self.length - 1]

    def _varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise self._error()

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _advance(self, count: int) -> None:
        self.length += count
        if self.length > len(self._data):
            raise self._error()

    def _error(self) -> CorruptArtefactError:
        return CorruptArtefactError(f"{self._where}: a page header cannot be read")
