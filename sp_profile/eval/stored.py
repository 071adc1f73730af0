"""A stored evaluation read back: from its folder, or from its two result files alone."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sp_profile.eval.cells import Cell, CellResult, Environment, PromptRow, PromptTiming
from sp_profile.eval.folder import RECALLS_NAME, RESULTS_NAME, SUMMARY_NAME, Evaluation
from sp_profile.eval.methods import DENSE
from sp_profile.eval.recall_store import read_recalls
from sp_profile.eval.recalls import RecallCell
from sp_profile.eval.results import ROW_SCHEMA, EvalSummary, read_summary
from sp_runtime.errors import CorruptArtefactError


def read_stored(folder: Path) -> tuple[EvalSummary, Evaluation]:
    """The summary and the rows of `summary.json` and `results.parquet` in a folder.

    Processes and versions of the cells are not in the rows, nor are failed cells. Raises
    UsageError where a file is missing, CorruptArtefactError where one is damaged or the two are
    not of one evaluation.
    """
    import pyarrow.parquet as pq

    summary = read_summary(folder / SUMMARY_NAME)
    path = folder / RESULTS_NAME
    table = pq.read_table(path)
    if (table.schema.metadata or {}).get(b"sp.schema") != ROW_SCHEMA.encode():
        raise CorruptArtefactError(f"{path}: schema: is not {ROW_SCHEMA}")
    grouped: dict[tuple[str, str, int], list[dict[str, Any]]] = defaultdict(list)
    for row in table.to_pylist():
        grouped[row["method"], row["task"], row["length"]].append(row)
    methods = {method.label: method for method in summary.config.reported}
    cells = []
    for (label, task, length), rows in grouped.items():
        if label not in methods:
            raise CorruptArtefactError(f"{path}: method: {label} is not in {SUMMARY_NAME}")
        cell = Cell(method=methods[label], task=task, length=length)
        cells.append(_cell(cell, rows))
    return summary, Evaluation(path=folder, config=summary.config, cells=tuple(cells), failed=())


def stored_recalls(folder: Path) -> tuple[RecallCell, ...]:
    """The rows of `recalls.parquet` in a folder, none without it; CorruptArtefactError."""
    path = folder / RECALLS_NAME
    return read_recalls(path) if path.exists() else ()


def complete_part(evaluation: Evaluation) -> tuple[Evaluation, tuple[str, ...]]:
    """The cells of an unfinished evaluation in which every method is paired, and what was left out.

    At each length the tasks are those that every method with the most samples has finished, but for
    methods that have finished less than half of what dense has; a method that lacks one of these
    tasks is left out there.
    """
    config = evaluation.config
    most = config.samples
    samples = {method.label: method.samples for method in config.reported}
    kept: list[CellResult] = []
    left_out: list[str] = []
    for length in sorted(config.lengths):
        done: dict[str, set[str]] = defaultdict(set)
        for cell in evaluation.cells:
            if cell.length == length:
                done[cell.method].add(cell.task)
        dense = done.get(DENSE, set())
        main = [
            tasks & dense
            for label, tasks in done.items()
            if samples[label] == most and 2 * len(tasks & dense) >= len(dense)
        ]
        tasks = set.intersection(*main) if main else set()
        whole = {label for label, found in done.items() if tasks and tasks <= found}
        left_out += [f"{method} at {length}" for method in samples if tasks and method not in whole]
        if dense - tasks:
            left_out.append(f"{', '.join(sorted(dense - tasks))} at {length}, for all methods")
        kept += [
            cell
            for cell in evaluation.cells
            if cell.length == length and cell.method in whole and cell.task in tasks
        ]
    return dataclasses.replace(evaluation, cells=tuple(kept)), tuple(left_out)


def _cell(cell: Cell, rows: list[dict[str, Any]]) -> CellResult:
    first = rows[0]
    return CellResult(
        id=cell.id,
        method=cell.method.label,
        task=cell.task,
        length=cell.length,
        metric=first["metric"],
        environment=Environment(
            device=first["device"], kernels=first["kernels"], processes=1, versions=()
        ),
        warmup_runs=0,
        untimed="",
        rows=tuple(_row(row) for row in sorted(rows, key=lambda row: int(row["index"]))),
    )


def _row(row: Mapping[str, Any]) -> PromptRow:
    timing = None
    if row["ttft_seconds"] is not None:
        timing = PromptTiming(
            ttft=row["ttft_seconds"],
            attention=row["attention_seconds"],
            index=row["index_seconds"],
        )
    return PromptRow(
        index=row["index"],
        prompt_sha256=row["prompt_sha256"],
        score=row["score"],
        density=row["density"],
        estimation=row["estimation"],
        path=row["path"],
        new_tokens=row["new_tokens"],
        timing=timing,
        text=None,
        kl=row.get("kl"),
        kl_last=row.get("kl_last"),
        equal=row.get("texts_equal"),
    )
