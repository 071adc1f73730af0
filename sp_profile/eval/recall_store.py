"""The recalls of an evaluation as a file: a row a prompt and method, its heads as a list."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sp_profile.atomic import publish_file
from sp_profile.eval.cells import HeadRecall, PromptRow
from sp_profile.eval.recalls import RecallCell
from sp_runtime.errors import CorruptArtefactError

RECALL_SCHEMA = "sp.eval_recalls/1"


def store_recalls(path: Path, cells: Iterable[RecallCell]) -> None:
    """Write the cells of a recall pass, atomically; `recalls` is empty for a dense path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, whole, real = pa.string(), pa.int64(), pa.float64()
    head = [("layer", whole), ("head", whole), ("branch", text), ("recall", real)]
    element = pa.struct([pa.field(name, kind, nullable=False) for name, kind in head])
    columns = [
        ("method", text),
        ("task", text),
        ("length", whole),
        ("index", whole),
        ("prompt_sha256", text),
        ("density", real),
        ("estimation", real),
        ("path", text),
        ("recalls", pa.list_(pa.field("element", element, nullable=False))),
    ]
    fields = [pa.field(name, kind, nullable=False) for name, kind in columns]
    schema = pa.schema(fields, metadata={"sp.schema": RECALL_SCHEMA})
    table = pa.Table.from_pylist([row for cell in cells for row in _rows(cell)], schema=schema)
    with publish_file(path, opened=True) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def read_recalls(path: Path) -> tuple[RecallCell, ...]:
    """The cells of such a file in its order; CorruptArtefactError where it is of another kind."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    if (table.schema.metadata or {}).get(b"sp.schema") != RECALL_SCHEMA.encode():
        raise CorruptArtefactError(f"{path}: schema: is not {RECALL_SCHEMA}")
    grouped: dict[tuple[str, str, int], list[PromptRow]] = defaultdict(list)
    for row in table.to_pylist():
        grouped[row["method"], row["task"], row["length"]].append(_prompt(row))
    return tuple(
        RecallCell(method=method, task=task, length=length, rows=tuple(rows))
        for (method, task, length), rows in grouped.items()
    )


def _rows(cell: RecallCell) -> list[dict[str, Any]]:
    return [
        {
            "method": cell.method,
            "task": cell.task,
            "length": cell.length,
            "index": row.index,
            "prompt_sha256": row.prompt_sha256,
            "density": row.density,
            "estimation": row.estimation,
            "path": row.path,
            "recalls": [asdict(one) for one in row.recalls],
        }
        for row in cell.rows
    ]


def _prompt(row: Mapping[str, Any]) -> PromptRow:
    return PromptRow(
        index=row["index"],
        prompt_sha256=row["prompt_sha256"],
        score=None,
        density=row["density"],
        estimation=row["estimation"],
        path=row["path"],
        new_tokens=0,
        timing=None,
        text=None,
        recalls=tuple(HeadRecall(**one) for one in row["recalls"]),
    )
