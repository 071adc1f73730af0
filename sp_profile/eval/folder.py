"""The folder of an evaluation: cells, and inside it the folders of prompts and of passes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from sp_profile.eval.cells import Cell, CellResult, cell_from_bytes, cell_to_bytes
from sp_profile.eval.config import EvalConfig, merged
from sp_profile.journal import JournalEntry
from sp_profile.run_group import RunGroup
from sp_profile.work_folder import WorkFolder, WorkKind, open_work, read_unit, read_work
from sp_runtime.errors import CorruptArtefactError

RESULTS_NAME = "results.parquet"
SUMMARY_NAME = "summary.json"
PLOT_NAME = "pareto.png"
RECALLS_NAME = "recalls.parquet"
PROMPTS, TIMES, RECALLS = "prompts", "times", "recalls"

EVALUATION: WorkKind[EvalConfig] = WorkKind(
    config=EvalConfig,
    units=lambda config: tuple(cell.id for cell in config.cells()),
    data="cells",
    suffix=".json",
    command="sp-run eval",
    others=frozenset(
        {PROMPTS, TIMES, RECALLS, RESULTS_NAME, RECALLS_NAME, SUMMARY_NAME, PLOT_NAME}
    ),
)


class EvalFolder:
    """An evaluation's folder in the hands of one process of its group."""

    def __init__(self, work: WorkFolder[EvalConfig]) -> None:
        self.work = work

    @property
    def config(self) -> EvalConfig:
        return self.work.config

    def add(self, result: CellResult) -> None:
        """Publish a finished cell, then journal it; ResourceError."""
        self.work.add(result.id, cell_to_bytes(result))

    def fail(self, cell: Cell, reason: str) -> None:
        """Record that a cell cannot be evaluated; ResourceError."""
        self.work.quarantine(cell.id, reason)


@contextmanager
def open_eval(
    path: Path, asked: EvalConfig, *, extend: bool = False, group: RunGroup | None = None
) -> Iterator[EvalFolder]:
    """Open an evaluation for work; with `extend` it may grow. Raises as `open_work`."""
    kind = dataclasses.replace(EVALUATION, merge=partial(merged, extend=extend))
    with open_work(path, kind, asked, group=group) as work:
        yield EvalFolder(work)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A finished or unfinished evaluation, for reading. failed: cells and why; path: its folder."""

    path: Path
    config: EvalConfig
    cells: tuple[CellResult, ...]
    failed: tuple[tuple[Cell, str], ...]

    @property
    def missing(self) -> int:
        """How many cells are not evaluated yet."""
        return len(self.config.cells()) - len(self.cells) - len(self.failed)


def read_evaluation(path: Path) -> Evaluation:
    """Read and check every finished cell.

    Raises UsageError where there is no evaluation, CorruptArtefactError naming a file.
    """
    config, entries = read_work(path, EVALUATION)
    known = {cell.id: cell for cell in config.cells()}
    return Evaluation(
        path=path,
        config=config,
        cells=tuple(
            _read_cell(path, known[entry.unit], entry) for entry in entries if entry.state == "done"
        ),
        failed=tuple(
            (known[entry.unit], entry.reason) for entry in entries if entry.state == "bad"
        ),
    )


def _read_cell(path: Path, cell: Cell, entry: JournalEntry) -> CellResult:
    file = EVALUATION.file(path, cell.id)
    result = cell_from_bytes(read_unit(path, EVALUATION, entry), str(file))
    named = (result.id, result.method, result.task, result.length)
    if named != (cell.id, cell.method.label, cell.task, cell.length):
        raise CorruptArtefactError(f"{file}: is of another cell")
    return result
