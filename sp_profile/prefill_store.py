"""Prefill results as rows: JSON lines and Parquet, published atomically."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sp_profile.agreement import Agreement
from sp_profile.atomic import publish_bytes, publish_file
from sp_profile.prefill_types import BranchCounts, LayerResult, PrefillResult, Sparsity, Timing
from sp_runtime.audit import HeadAudit

ROW_SCHEMA = "sp.prefill_result"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What all rows of one command share.

    point: the operating point, and config: the rest of `PrefillConfig`, as canonical JSON.
    """

    model: str
    revision: str | None
    trust_remote_code: bool
    profile_id: str | None
    method: str
    rule: str
    point: str
    config: str
    dtype: str
    device: str
    kernels: str
    block_size: int
    chunk_size: int | None
    chat_template: bool


def to_row(result: PrefillResult, facts: RunFacts) -> dict[str, Any]:
    """One prompt's result as plain values, with the facts of the run and a `schema` key."""
    row = dataclasses.asdict(result)
    return {
        "schema": ROW_SCHEMA,
        **dataclasses.asdict(facts),
        **row,
        "speedup": result.speedup,
    }


def store(path: Path, results: Sequence[PrefillResult], facts: RunFacts) -> None:
    """Write the results, sorted as given; the format follows from the suffix.

    Raises UsageError and ResourceError as `atomic.publish_bytes` does; nothing half-written.
    """
    rows = [to_row(result, facts) for result in results]
    if path.suffix == ".jsonl":
        lines = (json.dumps(row, allow_nan=False, sort_keys=False) + "\n" for row in rows)
        publish_bytes(path, "".join(lines).encode("ascii"))
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(rows, schema=_arrow_schema())
    with publish_file(path) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def _arrow_schema() -> Any:
    import pyarrow as pa

    text, count, real = pa.string(), pa.int64(), pa.float64()
    plain = {"str": text, "int": count, "float": real, "bool": pa.bool_(), "ComputePath": text}
    listed = {
        "tuple[str, ...]": pa.list_(text),
        "tuple[int, ...]": pa.list_(count),
        "tuple[float, ...]": pa.list_(real),
    }
    known: dict[str, Any] = {**plain, **listed}

    def struct(kind: type) -> Any:
        return pa.struct(columns(kind))

    def columns(kind: type) -> list[Any]:
        return [column(field) for field in dataclasses.fields(kind)]

    def column(field: dataclasses.Field[Any]) -> Any:
        # Annotations are strings here; a nullable field ends in "| None".
        name = str(field.type)
        kind = known[name.removesuffix(" | None")]
        return pa.field(field.name, kind, nullable=name.endswith(" | None"))

    for nested in (BranchCounts, LayerResult, HeadAudit, Timing, Agreement):
        known[nested.__name__] = struct(nested)
        known[f"tuple[{nested.__name__}, ...]"] = pa.list_(struct(nested))
    known["Sparsity"] = struct(Sparsity)
    return pa.schema(
        [
            pa.field("schema", text, nullable=False),
            *columns(RunFacts),
            *columns(PrefillResult),
            pa.field("speedup", real),
        ]
    )
