"""Recall of methods on an evaluation's prompts: means and tails with intervals, paired.

Audited heads weigh the same within their prompt, prompts within their task, and tasks at a length.
The bootstrap draws prompts, the same ones for every method; see `Bootstrap`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sp_profile.eval.cells import PromptRow
from sp_profile.eval.folder import Evaluation
from sp_profile.eval.statistics import Bootstrap, Estimate, Matrix, percentile_estimate
from sp_profile.eval.summary import Failure, MethodInfo, failures, name_methods
from sp_runtime.errors import CorruptArtefactError

TAIL = 0.1
"""Which quantile of recall stands for the worst heads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallCell:
    """A method's audited prompts of a task and length, ascending by index."""

    method: str
    task: str
    length: int
    rows: tuple[PromptRow, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallSummary:
    """A method at a length: means over the tasks named.

    heads: audited, over all prompts. recall_p10: tenth percentile over heads and prompts. density,
    estimation: blocks computed and spent on estimates, over causal blocks, on these prompts.
    """

    method: str
    length: int
    tasks: tuple[str, ...]
    prompts: int
    heads: int
    recall: Estimate
    recall_p10: Estimate
    density: float
    estimation: float


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallOverview:
    """What a recall pass has found. share: of the heads; missing: cells not measured yet; failed:
    those that could not be."""

    share: float
    methods: tuple[MethodInfo, ...]
    lengths: tuple[RecallSummary, ...]
    missing: int
    failed: tuple[Failure, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallDraws:
    """A method at a length: float64 [1 + resamples] each, the figure itself first.

    Methods drawn together are paired: entry i of each comes from the same prompts.
    """

    recall: Matrix
    recall_p10: Matrix
    density: Matrix
    estimation: Matrix


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stratum:
    """The rows of one task, of prompts that every method was audited on, method by method."""

    name: str
    rows: tuple[tuple[PromptRow, ...], ...]


class PairedRecalls:
    """The cells of a recall pass by method, task and length; methods, tasks in this order."""

    def __init__(self, methods: Sequence[MethodInfo], cells: Iterable[RecallCell]) -> None:
        self.methods = tuple(methods)
        self._cells = {(cell.method, cell.task, cell.length): cell for cell in cells}
        self._tasks = tuple(dict.fromkeys(task for _, task, _ in self._cells))
        self._bootstrap = Bootstrap()

    @property
    def lengths(self) -> tuple[int, ...]:
        """Those of which something is measured."""
        return tuple(sorted({length for _, _, length in self._cells}))

    def at(self, length: int) -> tuple[str, ...]:
        """Labels of the methods of which something is measured at a length."""
        found = {label for label, _, at in self._cells if at == length}
        return tuple(method.label for method in self.methods if method.label in found)

    def tasks(self, labels: Sequence[str], length: int) -> tuple[str, ...]:
        """Those that all of these methods have finished at a length."""
        return tuple(
            task
            for task in self._tasks
            if all((label, task, length) in self._cells for label in labels)
        )

    def rows(self, labels: Sequence[str], length: int) -> tuple[tuple[PromptRow, ...], ...]:
        """Of each of these methods, the rows of `draw`."""
        strata = self._strata(labels, length)
        return tuple(
            tuple(row for stratum in strata for row in stratum.rows[number])
            for number in range(len(labels))
        )

    def draw(self, labels: Sequence[str], length: int) -> tuple[RecallDraws, ...]:
        """Each method, over the tasks and prompts that all of them have; empty where there are
        none. Raises CorruptArtefactError where prompts or heads of two methods differ."""
        strata = self._strata(labels, length)
        if not strata:
            return ()
        weights = [self._weights(stratum) for stratum in strata]
        return tuple(
            _drawn([stratum.rows[number] for stratum in strata], weights)
            for number in range(len(labels))
        )

    def _weights(self, stratum: _Stratum) -> Matrix:
        """float64 [1 + resamples, prompts], rows sum to 1: every prompt alike, and the draws."""
        count = len(stratum.rows[0])
        draws = self._bootstrap.means(np.eye(count), stratum.name)
        return np.concatenate([np.full((1, count), 1.0 / count), draws])

    def _strata(self, labels: Sequence[str], length: int) -> list[_Stratum]:
        strata = []
        for task in self.tasks(labels, length) if labels else ():
            cells = [self._cells[label, task, length] for label in labels]
            together = list(zip(*(cell.rows for cell in cells), strict=False))
            for rows in together:
                _require_paired(rows, f"{task} at {length}")
            kept = [rows for rows in together if all(_is_audited(row) for row in rows)]
            if kept:
                rows = tuple(zip(*kept, strict=True))
                strata.append(_Stratum(name=f"{task}/{length}", rows=rows))
        return strata


def recall_cells(evaluation: Evaluation) -> tuple[RecallCell, ...]:
    """The finished cells of a recall pass by length, task and method, each method's largest."""
    config = evaluation.config
    samples = {method.label: method.samples for method in config.reported}
    order = {label: number for number, label in enumerate(samples)}
    known = {cell.id: cell for cell in config.cells()}
    wanted = [
        cell for cell in evaluation.cells if known[cell.id].method.samples == samples[cell.method]
    ]
    return tuple(
        RecallCell(method=cell.method, task=cell.task, length=cell.length, rows=cell.rows)
        for cell in sorted(
            wanted, key=lambda c: (c.length, config.tasks.index(c.task), order[c.method])
        )
    )


def summarise_recalls(evaluation: Evaluation) -> RecallOverview:
    """Of a recall pass; at each length over the tasks that every method has finished there."""
    config = evaluation.config
    assert config.audit is not None
    paired = PairedRecalls(name_methods(config.reported), recall_cells(evaluation))
    lengths = []
    for length in paired.lengths:
        labels = paired.at(length)
        measured = zip(labels, paired.draw(labels, length), strict=False)
        for (label, draws), rows in zip(measured, paired.rows(labels, length), strict=False):
            lengths.append(
                RecallSummary(
                    method=label,
                    length=length,
                    tasks=paired.tasks(labels, length),
                    prompts=len(rows),
                    heads=sum(len(row.recalls) for row in rows),
                    recall=estimate(draws.recall),
                    recall_p10=estimate(draws.recall_p10),
                    density=float(draws.density[0]),
                    estimation=float(draws.estimation[0]),
                )
            )
    return RecallOverview(
        share=config.audit,
        methods=paired.methods,
        lengths=tuple(lengths),
        missing=evaluation.missing,
        failed=failures(evaluation),
    )


def estimate(draws: Matrix) -> Estimate:
    """A figure and its interval from [1 + resamples], the figure itself first."""
    return percentile_estimate(float(draws[0]), draws[1:])


def _drawn(strata: Sequence[Sequence[PromptRow]], weights: Sequence[Matrix]) -> RecallDraws:
    """One method; strata: its rows task by task, weights: of them, as `_weights`."""
    rows = [row for stratum in strata for row in stratum]
    every = np.concatenate(list(weights), axis=1) / len(strata)
    values = [_values(row) for row in rows]
    means = np.array([value.mean() for value in values])
    return RecallDraws(
        recall=every @ means,
        recall_p10=_tails(values, every),
        density=every @ np.array([row.density for row in rows]),
        estimation=every @ np.array([row.estimation for row in rows]),
    )


def _tails(values: Sequence[Matrix], weights: Matrix) -> Matrix:
    """float64 [draws]: the smallest recall up to which a tenth of the weight lies.

    values: of the heads, prompt by prompt; weights: float64 [draws, prompts].
    """
    prompts = np.repeat(np.arange(len(values)), [len(value) for value in values])
    share = np.array([1.0 / len(value) for value in values])
    pooled = np.concatenate(list(values))
    order = np.argsort(pooled, kind="stable")
    prompts, pooled = prompts[order], pooled[order]
    tails = np.empty(len(weights))
    for number, draw in enumerate(weights * share):
        reached = np.searchsorted(np.cumsum(draw[prompts]), TAIL - 1e-9)
        tails[number] = pooled[min(int(reached), len(pooled) - 1)]
    return tails


def _values(row: PromptRow) -> Matrix:
    """Recall of the audited heads, float64 [n]; a path that was dense as a whole keeps all."""
    if row.path == "dense":
        return np.ones(1)
    return np.array([one.recall for one in row.recalls], dtype=np.float64)


def _is_audited(row: PromptRow) -> bool:
    return row.path == "dense" or bool(row.recalls)


def _require_paired(rows: Sequence[PromptRow], where: str) -> None:
    heads = [[(one.layer, one.head) for one in row.recalls] for row in rows if row.path != "dense"]
    same_prompt = len({row.prompt_sha256 for row in rows}) == 1
    if not same_prompt or any(one != heads[0] for one in heads):
        raise CorruptArtefactError(
            f"prompt {rows[0].index} of {where}: not every method saw it and its audited heads",
            hint="delete the folder recalls, and run the recall pass again",
        )
