"""Page headers, read before Arrow unpacks: sizes, checksums, and headers of every form."""

from __future__ import annotations

import io
import struct

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sp_profile.parquet import checked_file, read_rows
from sp_profile.parquet_pages import _Header, check_pages
from sp_runtime.errors import CorruptArtefactError

SCHEMA = pa.schema(
    [pa.field("n", pa.int32(), nullable=False), pa.field("s", pa.string(), nullable=False)]
)


def table(rows: int, text: str) -> pa.Table:
    return pa.table({"n": range(rows), "s": [text] * rows}, schema=SCHEMA)


@pytest.fixture
def write(tmp_path):
    """write(table, **options): the open file and its metadata."""
    opened = []

    def write(found: pa.Table, **options):
        path = tmp_path / "t.parquet"
        options = {"compression": "zstd", "write_page_checksum": True, **options}
        pq.write_table(found, path, **options)
        file = open(path, "rb")  # noqa: SIM115
        opened.append(file)
        return file, pq.read_metadata(path)

    yield write
    for file in opened:
        file.close()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_dictionary": False},
        {"data_page_version": "2.0"},
        {"compression": "none"},
        {"data_page_size": 64, "write_batch_size": 8, "max_rows_per_page": 8},
        {"row_group_size": 7},
        {"write_statistics": False},
    ],
    ids=str,
)
def test_the_sizes_are_those_of_the_footer(write, options):
    file, metadata = write(table(100, "some text"), **options)
    file.seek(5)
    total = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    check_pages(file, metadata, max_bytes=total, name="t")
    assert file.tell() == 5
    # The footer counts the page headers too, which are most of it where pages are small.
    with pytest.raises(CorruptArtefactError, match="unpack to more than the table needs"):
        check_pages(file, metadata, max_bytes=64, name="t")


def test_a_page_that_unpacks_to_much_is_refused_unread(write):
    file, metadata = write(table(4, "\0" * (16 << 20)), use_dictionary=False)
    assert metadata.serialized_size + metadata.row_group(0).column(1).total_compressed_size < 50_000
    with pytest.raises(CorruptArtefactError, match="row group 0, s: its pages unpack"):
        check_pages(file, metadata, max_bytes=1 << 20, name="t")


def test_pages_without_checksums_are_refused(write):
    file, metadata = write(table(4, "x"), write_page_checksum=False)
    with pytest.raises(CorruptArtefactError, match="row group 0, n: a page has no checksum"):
        check_pages(file, metadata, max_bytes=1 << 20, name="t")


def test_one_value_in_every_row_does_not_multiply(write):
    """A dictionary holds the value once; unpacked it would stand in each of the rows."""
    file, _ = write(table(4096, "x" * (256 << 10)))
    before = pa.total_allocated_bytes()
    with (
        pytest.raises(CorruptArtefactError, match="unpacks to more than"),
        checked_file(file, SCHEMA, rows=4096, max_bytes=1 << 20, name="t") as parquet,
    ):
        read_rows(parquet, SCHEMA, max_bytes=1 << 20, name="t")
    assert pa.total_allocated_bytes() - before < 32 << 20


def test_rows_come_back_whole(write):
    expected = table(1000, "text")
    file, _ = write(expected, row_group_size=300)
    with checked_file(file, SCHEMA, rows=1000, max_bytes=1 << 20, name="t") as parquet:
        assert read_rows(parquet, SCHEMA, max_bytes=1 << 20, name="t").equals(expected)
        group = read_rows(parquet, SCHEMA, group=3, max_bytes=1 << 20, name="t")
    assert group.equals(expected.slice(900))


def test_every_kind_of_thrift_field_is_stepped_over():
    header = io.BytesIO()
    header.write(bytes([0x15, 0x02, 0x15, 0x0A, 0x15, 0x08, 0x15, 0x06]))  # 1: 1, 2: 5, 3: 4, 4: 3
    header.write(bytes([0x11, 0x12, 0x13, 0x7F]))  # true, false, a byte
    header.write(bytes([0x17]) + struct.pack("<d", 1.5))  # a double
    header.write(bytes([0x18, 0x03]) + b"abc")  # text
    header.write(bytes([0x19, 0x25, 0x02, 0x04]))  # a list of two integers
    header.write(bytes([0x1C, 0x15, 0x02, 0x00]))  # a struct of one integer
    header.write(bytes([0x05, 0x64, 0x02]))  # field 50 by its number: 1
    header.write(b"\0rest")
    found = _Header(header.getvalue(), "t")
    assert found.fields == {1: 1, 2: 5, 3: 4, 4: 3, 50: 1}
    assert found.length == len(header.getvalue()) - 4


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x15",
        b"\x15" + b"\xff" * 11,
        b"\x18\xff\xff\x7f",
        b"\x1c" * 64,
        b"\x1b\x01\x55\x00\x00",
        b"\x19\xf5\xff\xff\xff\xff\x0f" + b"\x01" * 16,
    ],
    ids=["empty", "cut", "long integer", "long text", "deep", "a map", "long list"],
)
def test_broken_headers_are_refused(data):
    with pytest.raises(CorruptArtefactError, match="a page header cannot be read"):
        _Header(data, "t")
