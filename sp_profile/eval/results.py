"""The results of an evaluation as files: a row a prompt and method, and one summary document."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sp_profile.atomic import publish_bytes, publish_file
from sp_profile.eval.cells import CellResult
from sp_profile.eval.config import EvalConfig
from sp_profile.eval.equal_density import EqualDensity, equal_density
from sp_profile.eval.folder import (
    RECALLS,
    RECALLS_NAME,
    RESULTS_NAME,
    SUMMARY_NAME,
    TIMES,
    Evaluation,
    read_evaluation,
)
from sp_profile.eval.passes import has_pass
from sp_profile.eval.quoted import unquote
from sp_profile.eval.recall_store import store_recalls
from sp_profile.eval.recalls import RecallOverview, recall_cells, summarise_recalls
from sp_profile.eval.summary import (
    SUMMARY_SCHEMA,
    SUMMARY_VERSION,
    Overview,
    PairedScores,
    summarise,
)
from sp_runtime.strict_json import OPTIONAL, decode, encode_pretty, parse, read_bytes

ROW_SCHEMA = "sp.eval_rows/1"


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalSummary:
    """Everything about an evaluation but the single prompts; `config` says what was asked for.

    recalls: None where there was no recall pass.
    """

    schema: str = SUMMARY_SCHEMA
    schema_version: str = SUMMARY_VERSION
    config: EvalConfig
    overview: Overview
    equal_density: EqualDensity
    recalls: RecallOverview | None = field(default=None, metadata=OPTIONAL)


def make_summary(folder: Path, *, reference: str | None = None) -> EvalSummary:
    """The summary of what is finished in an evaluation's folder.

    reference: family that others are compared with at equal density. Raises UsageError where there
    is no evaluation, CorruptArtefactError.
    """
    evaluation = read_evaluation(folder)
    timed, audited = (_read_pass(folder, name) for name in (TIMES, RECALLS))
    paired = PairedScores(evaluation.config, evaluation.cells)
    overview = summarise(evaluation, timed, paired)
    return EvalSummary(
        config=evaluation.config,
        overview=overview,
        equal_density=equal_density(overview, paired, reference=reference),
        recalls=None if audited is None else summarise_recalls(audited),
    )


def _read_pass(folder: Path, name: str) -> Evaluation | None:
    return read_evaluation(folder / name) if has_pass(folder, name) else None


def store_results(folder: Path, summary: EvalSummary) -> None:
    """Write the rows and the summary into the folder, each atomically."""
    evaluation = read_evaluation(folder)
    paired = PairedScores(evaluation.config, evaluation.cells)
    _store_rows(folder / RESULTS_NAME, evaluation, paired)
    audited = _read_pass(folder, RECALLS)
    if audited is not None:
        store_recalls(folder / RECALLS_NAME, recall_cells(audited))
    publish_bytes(folder / SUMMARY_NAME, encode_pretty(summary).encode("ascii"), opened=True)


def read_summary(path: Path) -> EvalSummary:
    """Read a stored summary strictly; CorruptArtefactError names the field."""
    name = str(path)
    return decode(EvalSummary, parse(read_bytes(path), name), name)


def _store_rows(path: Path, evaluation: Evaluation, paired: PairedScores) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text, whole, real = pa.string(), pa.int64(), pa.float64()
    required = [
        ("method", text),
        ("task", text),
        ("length", whole),
        ("metric", text),
        ("index", whole),
        ("prompt_sha256", text),
        ("score", real),
        ("density", real),
        ("estimation", real),
        ("path", text),
        ("new_tokens", whole),
        ("device", text),
        ("kernels", text),
    ]
    optional = [
        ("ttft_seconds", real),
        ("attention_seconds", real),
        ("index_seconds", real),
        ("kl", real),
        ("kl_last", real),
        ("texts_equal", real),
        ("text", text),
    ]
    fields = [pa.field(name, kind, nullable=False) for name, kind in required]
    fields += [pa.field(name, kind) for name, kind in optional]
    schema = pa.schema(fields, metadata={"sp.schema": ROW_SCHEMA})
    rows = [row for cell in paired.ordered() for row in _rows(cell)]
    table = pa.Table.from_pylist(rows, schema=schema)
    with publish_file(path, opened=True) as file:
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)


def _rows(cell: CellResult) -> list[dict[str, Any]]:
    """Parquet rows of a cell."""
    return [
        {
            "method": cell.method,
            "task": cell.task,
            "length": cell.length,
            "metric": cell.metric,
            "index": row.index,
            "prompt_sha256": row.prompt_sha256,
            "score": row.score,
            "density": row.density,
            "estimation": row.estimation,
            "path": row.path,
            "new_tokens": row.new_tokens,
            "device": cell.environment.device,
            "kernels": cell.environment.kernels,
            "ttft_seconds": row.timing.ttft if row.timing else None,
            "attention_seconds": row.timing.attention if row.timing else None,
            "index_seconds": row.timing.index if row.timing else None,
            "kl": row.kl,
            "kl_last": row.kl_last,
            "texts_equal": row.equal,
            "text": None if row.text is None else unquote(row.text, cell.id),
        }
        for row in cell.rows
    ]
