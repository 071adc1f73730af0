"""Hostile Parquet tables: how each is made from a valid one, and what its refusal must say.

Every table of the corpus is read with its hash corrected, as an attacker would: what refuses it is
the reader of its content.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

HEADS, SIMILARITY, MASKS = "heads.parquet", "similarity.parquet", "masks.parquet"


@dataclass(frozen=True, kw_only=True)
class TableCase:
    """table: the one that is replaced. change: of its rows; damage: of its bytes, afterwards."""

    table: str
    match: str
    change: Callable[[pa.Table], pa.Table] = lambda table: table
    damage: Callable[[bytes], bytes] = lambda data: data
    options: dict[str, Any] = field(default_factory=dict)
    row_group_size: int | None = None

    def make(self, valid: bytes) -> bytes:
        """The hostile file, from the valid one."""
        table = pq.read_table(io.BytesIO(valid))
        sizes = self.row_group_size or pq.read_metadata(io.BytesIO(valid)).row_group(0).num_rows
        buffer = io.BytesIO()
        options = {"compression": "zstd", "write_page_checksum": True, **self.options}
        pq.write_table(self.change(table), buffer, row_group_size=sizes, **options)
        return self.damage(buffer.getvalue())


def cell(column: str, row: int, value: Any) -> Callable[[pa.Table], pa.Table]:
    """One value replaced."""

    def change(table: pa.Table) -> pa.Table:
        values = table.column(column).to_pylist()
        values[row] = value
        return column_of(column, values)(table)

    return change


def column_of(column: str, values: list[Any], kind: pa.DataType | None = None) -> Any:
    """One column replaced."""

    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(column)
        found = table.schema.field(place)
        array = pa.array(values, type=kind or found.type)
        return table.set_column(place, pa.field(column, array.type, found.nullable), array)

    return change


def cast(column: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda table: column_of(column, table.column(column).to_pylist(), kind)(table)


def nullable(column: str, row: int) -> Callable[[pa.Table], pa.Table]:
    """A column that may be null, and is in one row."""

    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(column)
        values = table.column(column).to_pylist()
        values[row] = None
        kind = table.schema.field(place).type
        return table.set_column(place, pa.field(column, kind), pa.array(values, type=kind))

    return change


def rows(pick: Callable[[int], list[int]]) -> Callable[[pa.Table], pa.Table]:
    """The rows that `pick` chooses of so many."""
    return lambda table: table.take(pa.array(pick(table.num_rows), type=pa.int64()))


def flipped(place: float, mask: int = 0x40) -> Callable[[bytes], bytes]:
    """One bit flipped at a share of the file's length."""

    def damage(data: bytes) -> bytes:
        content = bytearray(data)
        content[int(place * len(content))] ^= mask
        return bytes(content)

    return damage


def footer_length(length: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:-8] + length.to_bytes(4, "little") + data[-4:]


def _swap(count: int) -> list[int]:
    return [1, 0, *range(2, count)]


def _bomb(table: pa.Table) -> pa.Table:
    return column_of("assignment", ["x" * (1 << 20)] * table.num_rows)(table)


def _bits(change: Callable[[bytes], bytes]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: cell("bits", 3, change(table.column("bits")[3].as_py()))(table)


def _last_bit(bits: bytes) -> bytes:
    return bits[:-1] + bytes([bits[-1] | 1])


def _all_prompts(sha256: str) -> Callable[[pa.Table], pa.Table]:
    return lambda table: column_of("prompt_sha256", [sha256] * table.num_rows)(table)


TABLE_CASES: dict[str, TableCase] = {
    # Bytes
    "heads-empty": TableCase(table=HEADS, damage=lambda data: b"", match="Parquet"),
    "heads-magic-only": TableCase(table=HEADS, damage=lambda data: b"PAR1PAR1", match="Parquet"),
    "heads-not-parquet": TableCase(table=HEADS, damage=lambda data: b"x" * 900, match="Parquet"),
    "heads-encrypted": TableCase(
        table=HEADS, damage=lambda data: b"PARE" + data[4:-4] + b"PARE", match="Parquet"
    ),
    "heads-truncated": TableCase(
        table=HEADS, damage=lambda data: data[: len(data) // 2], match="Parquet"
    ),
    "heads-footer-huge": TableCase(
        table=HEADS, damage=footer_length((1 << 32) - 1), match="Parquet"
    ),
    "heads-footer-zero": TableCase(table=HEADS, damage=footer_length(0), match="Parquet"),
    "heads-footer-short": TableCase(table=HEADS, damage=footer_length(40), match="Parquet"),
    "heads-page-flipped": TableCase(table=HEADS, damage=flipped(0.03), match="heads.parquet"),
    "heads-data-flipped": TableCase(table=HEADS, damage=flipped(0.2, 1), match="heads.parquet"),
    "heads-pages-zeroed": TableCase(
        table=HEADS,
        damage=lambda data: data[:4] + b"\0" * 400 + data[404:],
        match="heads.parquet",
    ),
    "heads-no-checksums": TableCase(
        table=HEADS, options={"write_page_checksum": False}, match="has no checksum"
    ),
    "heads-dictionary-bomb": TableCase(
        table=HEADS, change=_bomb, options={"compression": "zstd"}, match="unpack"
    ),
    # Rows
    "heads-row-missing": TableCase(
        table=HEADS, change=rows(lambda n: [*range(n - 1)]), match="rows, not"
    ),
    "heads-row-extra": TableCase(
        table=HEADS, change=rows(lambda n: [*range(n), 0]), row_group_size=99, match="rows, not"
    ),
    "heads-no-rows": TableCase(table=HEADS, change=rows(lambda n: []), match="rows, not"),
    "heads-rows-swapped": TableCase(table=HEADS, change=rows(_swap), match="head[0]"),
    "heads-row-twice": TableCase(
        table=HEADS, change=rows(lambda n: [0, *range(n - 1)]), match="layer[4]"
    ),
    # Columns
    "heads-column-missing": TableCase(
        table=HEADS, change=lambda table: table.drop_columns(["density"]), match="schema"
    ),
    "heads-column-extra": TableCase(
        table=HEADS,
        change=lambda table: table.append_column("code", pa.array(["x"] * table.num_rows)),
        match="schema",
    ),
    "heads-column-renamed": TableCase(
        table=HEADS,
        change=lambda table: table.rename_columns(["Layer", *table.schema.names[1:]]),
        match="schema",
    ),
    "heads-columns-reversed": TableCase(
        table=HEADS, change=lambda table: table.select(table.schema.names[::-1]), match="schema"
    ),
    "heads-dtype-int64": TableCase(table=HEADS, change=cast("layer", pa.int64()), match="schema"),
    "heads-dtype-double": TableCase(
        table=HEADS, change=cast("density", pa.float64()), match="schema"
    ),
    "heads-dtype-binary": TableCase(
        table=HEADS, change=cast("assignment", pa.large_string()), match="schema"
    ),
    "heads-dtype-nested": TableCase(
        table=HEADS,
        change=lambda table: column_of("layer", [[0]] * table.num_rows, pa.list_(pa.int32()))(
            table
        ),
        match="schema",
    ),
    "heads-null": TableCase(table=HEADS, change=nullable("density", 2), match="schema"),
    # Values
    "heads-nan": TableCase(
        table=HEADS, change=cell("density", 4, float("nan")), match="density[4]: nan"
    ),
    "heads-infinity": TableCase(
        table=HEADS, change=cell("uniform_jsd", 0, float("inf")), match="uniform_jsd[0]: inf"
    ),
    "heads-density-above-one": TableCase(
        table=HEADS, change=cell("density", 0, 2.0), match="density[0]: 2.0"
    ),
    "heads-density-negative": TableCase(
        table=HEADS, change=cell("density", 0, -0.5), match="density[0]: -0.5"
    ),
    "heads-cost-huge": TableCase(
        table=HEADS,
        change=cell("vertical_slash_cost", 1, 3e38),
        match="vertical_slash_cost[1]",
    ),
    # What the table repeats of the profile
    "heads-layer-out-of-range": TableCase(
        table=HEADS, change=cell("layer", 5, 1 << 30), match="layer[5]"
    ),
    "heads-head-negative": TableCase(table=HEADS, change=cell("head", 0, -1), match="head[0]"),
    "heads-cluster-other": TableCase(
        table=HEADS, change=cell("cluster", 0, 1), match="cluster[0]: 1 differs"
    ),
    "heads-anchor-other": TableCase(
        table=HEADS, change=cell("anchor_layer", 0, 3), match="anchor_layer[0]: 3 differs"
    ),
    "heads-lender-other": TableCase(
        table=HEADS, change=cell("lender_head", 4, 1), match="lender_head[4]: 1 differs"
    ),
    "heads-assignment-other": TableCase(
        table=HEADS, change=cell("assignment", 1, "dense"), match="assignment[1]: 'dense' differs"
    ),
    "heads-gamma-other": TableCase(table=HEADS, change=cell("gamma", 0, 0.5), match="gamma[0]"),
    # Similarity
    "similarity-pair-missing": TableCase(
        table=SIMILARITY, change=rows(lambda n: [*range(n - 1)]), match="rows, not"
    ),
    "similarity-pairs-swapped": TableCase(
        table=SIMILARITY, change=rows(_swap), match="condensed order"
    ),
    "similarity-head-out-of-range": TableCase(
        table=SIMILARITY, change=cell("b", 7, 12), match="condensed order"
    ),
    "similarity-nan": TableCase(
        table=SIMILARITY, change=cell("mean", 3, float("nan")), match="mean[3]: nan"
    ),
    "similarity-above-one": TableCase(
        table=SIMILARITY, change=cell("core_mean", 3, 1.5), match="core_mean[3]: 1.5"
    ),
    "similarity-dtype": TableCase(
        table=SIMILARITY, change=cast("min", pa.float64()), match="schema"
    ),
    # Masks
    "masks-prompt-missing": TableCase(
        table=MASKS, change=rows(lambda n: [*range(n // 2)]), match="rows, not"
    ),
    "masks-one-row-group": TableCase(table=MASKS, row_group_size=1000, match="row group a prompt"),
    "masks-prompt-unknown": TableCase(
        table=MASKS, change=_all_prompts("0" * 64), match="prompt_sha256"
    ),
    "masks-prompt-twice": TableCase(
        table=MASKS, change=_all_prompts("a" * 64), match="prompt_sha256"
    ),
    "masks-prompts-swapped": TableCase(
        table=MASKS,
        change=rows(lambda n: [*range(n // 2, n), *range(n // 2)]),
        match="prompt_sha256",
    ),
    "masks-head-twice": TableCase(
        table=MASKS, change=cell("head", 1, 0), match="not every head once"
    ),
    "masks-head-out-of-range": TableCase(
        table=MASKS, change=cell("layer", 11, 1 << 20), match="not every head once"
    ),
    "masks-tokens-other": TableCase(
        table=MASKS, change=cell("tokens", 2, 301), match="head [0, 2]: differs"
    ),
    "masks-blocks-other": TableCase(
        table=MASKS, change=cell("blocks", 2, (1 << 31) - 1), match="head [0, 2]: differs"
    ),
    "masks-bits-short": TableCase(
        table=MASKS, change=_bits(lambda bits: bits[:-1]), match="bits: are not"
    ),
    "masks-bits-long": TableCase(
        table=MASKS, change=_bits(lambda bits: bits + b"\0"), match="bits: are not"
    ),
    "masks-bits-empty": TableCase(
        table=MASKS, change=_bits(lambda bits: b""), match="bits: are not"
    ),
    "masks-padding-set": TableCase(table=MASKS, change=_bits(_last_bit), match="bits: are not"),
    "masks-bits-huge": TableCase(
        table=MASKS,
        change=_bits(lambda bits: np.zeros(1 << 22, np.uint8).tobytes()),
        match="unpack",
    ),
}
