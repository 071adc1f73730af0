"""Parquet as the artefact uses it: fixed schemas, checksums, and full validation on reading."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from sp_profile.parquet_pages import check_pages
from sp_runtime.errors import CorruptArtefactError
from sp_runtime.profile import FileRecord

_CHUNK = 1 << 20
# One value of a dictionary can stand in every row, so rows that hold bytes are unpacked a few at a
# time and counted; a column of numbers takes what its rows take.
_BYTE_ROWS = 16
_NUMBER_ROWS = 1 << 16
_THRIFT_STRING_LIMIT = 16 << 20
_THRIFT_CONTAINER_LIMIT = 1 << 20


@contextlib.contextmanager
def table_writer(
    file: IO[bytes], schema: pa.Schema, *, sorted_by: Sequence[str], metadata: Mapping[str, str]
) -> Iterator[pq.ParquetWriter]:
    """A writer of tables of `schema`, sorted by those columns; each table is one row group.

    String columns are dictionary-encoded and binary ones have no statistics.
    """
    schema = schema.with_metadata({key.encode(): value.encode() for key, value in metadata.items()})
    strings = [f.name for f in schema if pa.types.is_string(f.type)]
    plain = [f.name for f in schema if not pa.types.is_large_binary(f.type)]
    with pq.ParquetWriter(
        file,
        schema,
        compression="zstd",
        use_dictionary=strings or False,
        write_statistics=plain,
        write_page_checksum=True,
        sorting_columns=[pq.SortingColumn(schema.get_field_index(name)) for name in sorted_by],
    ) as writer:
        yield writer


@contextlib.contextmanager
def open_verified(folder: Path, record: FileRecord, max_bytes: int | None = None) -> Iterator[IO]:
    """The file at its start, after its size and hash were checked through the same handle.

    Raises CorruptArtefactError where it is missing, too large or altered, and where a symlink leads
    out of the folder (but for the blobs of a hub's cache, which keeps its files behind symlinks).
    """
    path = folder / record.name
    try:
        _require_inside(folder, path)
        # Opening a FIFO would wait for its writer, so it is refused first.
        if not stat.S_ISREG(path.stat().st_mode):
            raise CorruptArtefactError(f"{path}: is not a regular file")
        file = open(path, "rb")  # noqa: SIM115 (closed below, by the block that yields it)
    except (OSError, RuntimeError) as error:  # RuntimeError: a cycle, before Python 3.13
        reason = getattr(error, "strerror", None) or "the path is a cycle of symlinks"
        raise CorruptArtefactError(f"{path}: cannot be read: {reason}") from error
    with file:
        size = os.fstat(file.fileno()).st_size
        if max_bytes is not None and size > max_bytes:
            raise CorruptArtefactError(f"{path}: {size} bytes, more than its {max_bytes}")
        if size != record.bytes:
            raise CorruptArtefactError(f"{path}: {size} bytes, the profile says {record.bytes}")
        found = sha256_of(file)
        if found != record.sha256:
            raise CorruptArtefactError(
                f"{path}: sha256 {found} differs from the profile's {record.sha256}",
                hint="the file is damaged or of another profile; copy the whole folder again",
            )
        file.seek(0)
        yield file


def _require_inside(folder: Path, path: Path) -> None:
    """Raise CorruptArtefactError for a path that leads out of its folder; OSError for a cycle."""
    home, target = folder.resolve(strict=True), path.resolve(strict=True)
    if target.is_relative_to(home):
        return
    # A hub's cache: NAME/snapshots/REVISION/... holds symlinks to NAME/blobs/HASH.
    for above in (home, *home.parents):
        if above.parent.name == "snapshots" and target.parent == above.parent.parent / "blobs":
            return
    raise CorruptArtefactError(f"{path}: is a symlink that leads out of the profile's folder")


def sha256_of(file: IO[bytes]) -> str:
    """Hash of the rest of the file, in constant memory."""
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def checked_file(
    file: IO[bytes], schema: pa.Schema, *, rows: int, max_bytes: int, name: str
) -> Iterator[pq.ParquetFile]:
    """The Parquet file once its schema, row count and unpacked size are as expected.

    Whatever Arrow refuses inside the block becomes CorruptArtefactError that starts with `name`.
    """
    with arrow_errors(name):
        parquet = pq.ParquetFile(
            file,
            page_checksum_verification=True,
            thrift_string_size_limit=_THRIFT_STRING_LIMIT,
            thrift_container_size_limit=_THRIFT_CONTAINER_LIMIT,
        )
        if not parquet.schema_arrow.equals(schema):
            raise CorruptArtefactError(f"{name}: the schema is not that of this table")
        metadata = parquet.metadata
        if metadata.num_rows != rows:
            raise CorruptArtefactError(f"{name}: has {metadata.num_rows} rows, not {rows}")
        sizes = [metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups)]
        if any(size < 0 for size in sizes) or sum(sizes) > max_bytes:
            raise CorruptArtefactError(f"{name}: unpacks to more than {max_bytes} bytes")
        check_pages(file, metadata, max_bytes=max_bytes, name=name)
        yield parquet


def read_rows(
    parquet: pq.ParquetFile,
    schema: pa.Schema,
    *,
    group: int | None = None,
    max_bytes: int,
    name: str,
) -> pa.Table:
    """The rows of one row group, or of all, validated; never more than max_bytes of them.

    Raises CorruptArtefactError; whatever Arrow raises is left to `checked_file`.
    """
    groups = range(parquet.num_row_groups) if group is None else [group]
    has_bytes = any(_is_bytes(field.type) for field in schema)
    batches, size = [], 0
    for batch in parquet.iter_batches(
        batch_size=_BYTE_ROWS if has_bytes else _NUMBER_ROWS,
        row_groups=list(groups),
        use_threads=False,
    ):
        size += batch.nbytes
        if size > max_bytes:
            raise CorruptArtefactError(f"{name}: unpacks to more than {max_bytes} bytes")
        batches.append(batch)
    return validated(pa.Table.from_batches(batches, parquet.schema_arrow), schema, name)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_binary(kind))


def validated(table: pa.Table, schema: pa.Schema, name: str) -> pa.Table:
    """The table after full validation, without nulls; CorruptArtefactError otherwise."""
    with arrow_errors(name):
        table.validate(full=True)
    if not table.schema.equals(schema):
        raise CorruptArtefactError(f"{name}: the schema is not that of this table")
    for column in schema.names:
        if table.column(column).null_count:
            raise CorruptArtefactError(f"{name}: {column}: has nulls")
    return table


@contextlib.contextmanager
def arrow_errors(name: str) -> Iterator[None]:
    """Turn what Arrow raises about damaged bytes into CorruptArtefactError."""
    try:
        yield
    except CorruptArtefactError:
        raise
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        # Arrow quotes what it finds in the file.
        first = "".join(c if c.isprintable() else "?" for c in str(error)[:200])
        raise CorruptArtefactError(f"{name}: not valid Parquet: {first}") from error
