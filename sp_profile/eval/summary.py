"""From the cells of an evaluation to what is said about it.

Everything about a method at a length is a mean over tasks, each task counting the same, over those
tasks that every method has finished there; so methods stay paired.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sp_profile.eval.branches import MethodBranches, summed
from sp_profile.eval.cells import CellResult, Environment, PromptTiming
from sp_profile.eval.config import EvalConfig
from sp_profile.eval.folder import Evaluation
from sp_profile.eval.methods import DENSE, MethodPlan
from sp_profile.eval.statistics import (
    CONFIDENCE,
    RESAMPLES,
    Bootstrap,
    Estimate,
    Matrix,
)
from sp_runtime.errors import CorruptArtefactError
from sp_runtime.method_spec import fields_of, method_name
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.strict_json import OPTIONAL

SUMMARY_SCHEMA = "sp.eval_summary"
SUMMARY_VERSION = "1.0"
UNPOOLED = ("nll", "agreement")
"""Metrics that enter no mean over tasks: nats, and agreement with dense, which is no accuracy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seconds:
    """Medians over `prompts` prefills; the share of attention that is not the kernel is `index`,
    None where it cannot be told apart."""

    prompts: int
    ttft: float
    attention: float
    index: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class CellSummary:
    """A method on a task at a length. difference: to dense on the same prompts; None for dense.

    density, estimation: means over prompts, over causal blocks.
    """

    method: str
    task: str
    length: int
    metric: str
    samples: int
    score: Estimate
    difference: Estimate | None
    density: float
    estimation: float
    seconds: Seconds | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LengthSummary:
    """A method at a length, or over all lengths (None): means over the tasks named."""

    method: str
    length: int | None
    tasks: tuple[str, ...]
    prompts: int
    score: Estimate
    difference: Estimate | None
    density: float
    estimation: float
    seconds: Seconds | None

    @property
    def cost(self) -> float:
        """Blocks computed and spent on estimates, over causal blocks."""
        return self.density + self.estimation


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodInfo:
    """A method that was evaluated. name: short, unique here; family: whose sweep it is a point of.

    label: canonical text. samples: prompts of each task and length.
    """

    label: str
    name: str
    family: str
    point: OperatingPoint
    samples: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """A cell that could not be evaluated."""

    method: str
    task: str
    length: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Overview:
    """Cells and their means. missing: cells not evaluated yet. untimed: why times are missing.

    branches: of the methods whose cells recorded them.
    """

    methods: tuple[MethodInfo, ...]
    cells: tuple[CellSummary, ...]
    lengths: tuple[LengthSummary, ...]
    environments: tuple[Environment, ...]
    untimed: tuple[str, ...]
    missing: int
    failed: tuple[Failure, ...]
    resamples: int = RESAMPLES
    confidence: float = CONFIDENCE
    branches: tuple[MethodBranches, ...] = field(default=(), metadata=OPTIONAL)


class PairedScores:
    """The scores of an evaluation by method, task and length."""

    def __init__(self, config: EvalConfig, cells: Iterable[CellResult]) -> None:
        self.bootstrap = Bootstrap()
        self.methods = config.reported
        samples = {method.label: method.samples for method in self.methods}
        wanted = {
            cell.id for cell in config.cells() if cell.method.samples == samples[cell.method.label]
        }
        self._cells = {
            (cell.method, cell.task, cell.length): cell for cell in cells if cell.id in wanted
        }
        self._order = {task: number for number, task in enumerate(config.tasks)}

    def cell(self, method: str, task: str, length: int) -> CellResult | None:
        """One finished cell."""
        return self._cells.get((method, task, length))

    def ordered(self) -> list[CellResult]:
        """Finished cells by length, task and method, in the order of the configuration."""
        place = {method.label: number for number, method in enumerate(self.methods)}
        return sorted(
            self._cells.values(),
            key=lambda cell: (cell.length, self._order[cell.task], place[cell.method]),
        )

    def lengths(self) -> list[int]:
        """Lengths of which something is finished."""
        return sorted({cell.length for cell in self._cells.values()})

    def common_tasks(self, length: int, labels: Collection[str] | None = None) -> tuple[str, ...]:
        """Tasks with scores in [0, 1] that these methods have all finished at a length; None: all
        that have finished something there."""
        present = labels
        if present is None:
            present = {cell.method for cell in self._cells.values() if cell.length == length}
        tasks = {
            cell.task
            for cell in self._cells.values()
            if cell.length == length and cell.metric not in UNPOOLED
        }
        return tuple(
            task
            for task in sorted(tasks, key=self._order.__getitem__)
            if all((method, task, length) in self._cells for method in present)
        )

    def matrix(self, labels: Sequence[str], task: str, length: int) -> Matrix:
        """float64 [n, len(labels)]: scores of the prompts that all of these methods have seen.

        Raises CorruptArtefactError where two methods saw different prompts.
        """
        cells = [self._cells[label, task, length] for label in labels]
        count = min(len(cell.rows) for cell in cells)
        for row in range(count):
            if len({cell.rows[row].prompt_sha256 for cell in cells}) > 1:
                raise CorruptArtefactError(
                    f"prompt {row} of {task} at {length} is not the same for {', '.join(labels)}",
                    hint="evaluate into a new folder",
                )
        return np.array(
            [[cell.rows[row].score for cell in cells] for row in range(count)], dtype=np.float64
        )


def summarise(evaluation: Evaluation, timed: Evaluation | None, paired: PairedScores) -> Overview:
    """Means, intervals and medians of what is finished; `timed` brings times of its own.

    paired: the scores of `evaluation`.
    """
    clocks = _timings(evaluation, timed)
    cells = tuple(_cell(cell, paired, clocks) for cell in paired.ordered())
    labels = [method.label for method in paired.methods]
    lengths = [
        row
        for length in paired.lengths()
        for label in labels
        if (row := _length(label, (length,), paired, clocks)) is not None
    ]
    overall = [
        row
        for label in labels
        if (row := _length(label, tuple(paired.lengths()), paired, clocks)) is not None
    ]
    every = (*evaluation.cells, *(timed.cells if timed else ()))
    return Overview(
        methods=name_methods(paired.methods),
        cells=cells,
        lengths=(*lengths, *(overall if len(paired.lengths()) > 1 else ())),
        environments=tuple(dict.fromkeys(cell.environment for cell in every)),
        untimed=tuple(sorted({cell.untimed for cell in evaluation.cells if cell.untimed})),
        missing=evaluation.missing,
        failed=failures(evaluation),
        branches=_branches(labels, paired),
    )


def failures(evaluation: Evaluation) -> tuple[Failure, ...]:
    """Its cells that could not be evaluated."""
    return tuple(
        Failure(method=cell.method.label, task=cell.task, length=cell.length, reason=reason)
        for cell, reason in evaluation.failed
    )


def _branches(labels: Sequence[str], paired: PairedScores) -> tuple[MethodBranches, ...]:
    cells = paired.ordered()
    found = (summed(label, [c.branches for c in cells if c.method == label]) for label in labels)
    return tuple(one for one in found if one is not None)


_Clocks = dict[tuple[str, str, int], list[PromptTiming]]


def _timings(evaluation: Evaluation, timed: Evaluation | None) -> _Clocks:
    """Timings by method, task and length; a timing pass replaces what the cells hold."""
    clocks: _Clocks = {}
    for source in (evaluation, timed):
        for cell in source.cells if source else ():
            found = [row.timing for row in cell.rows if row.timing is not None]
            if found:
                clocks[cell.method, cell.task, cell.length] = found
    return clocks


def _cell(cell: CellResult, paired: PairedScores, clocks: _Clocks) -> CellSummary:
    name = f"{cell.task}/{cell.length}"
    scores = paired.matrix([cell.method], cell.task, cell.length)
    difference = None
    if cell.method != DENSE and paired.cell(DENSE, cell.task, cell.length) is not None:
        pair = paired.matrix([cell.method, DENSE], cell.task, cell.length)
        difference = paired.bootstrap.stratified_mean([(name, pair[:, 0] - pair[:, 1])])
    return CellSummary(
        method=cell.method,
        task=cell.task,
        length=cell.length,
        metric=cell.metric,
        samples=len(cell.rows),
        score=paired.bootstrap.score_estimate(name, scores[:, 0]),
        difference=difference,
        density=statistics.fmean(row.density for row in cell.rows),
        estimation=statistics.fmean(row.estimation for row in cell.rows),
        seconds=_seconds(clocks.get((cell.method, cell.task, cell.length), [])),
    )


def _length(
    label: str, lengths: tuple[int, ...], paired: PairedScores, clocks: _Clocks
) -> LengthSummary | None:
    """Means over the common tasks of one length, or of several; None where there are none."""
    places = [
        (task, length)
        for length in lengths
        for task in paired.common_tasks(length)
        if paired.cell(label, task, length) is not None
    ]
    if not places:
        return None
    cells = [cell for place in places if (cell := paired.cell(label, *place)) is not None]
    difference = None
    if label != DENSE and all(paired.cell(DENSE, *place) is not None for place in places):
        pairs = [(place, paired.matrix([label, DENSE], *place)) for place in places]
        difference = paired.bootstrap.stratified_mean(
            [(f"{task}/{length}", pair[:, 0] - pair[:, 1]) for (task, length), pair in pairs]
        )
    rows = [row for cell in cells for row in cell.rows]
    return LengthSummary(
        method=label,
        length=lengths[0] if len(lengths) == 1 else None,
        tasks=tuple(dict.fromkeys(task for task, _ in places)),
        prompts=len(rows),
        score=paired.bootstrap.stratified_mean(
            [
                (f"{task}/{length}", paired.matrix([label], task, length)[:, 0])
                for task, length in places
            ]
        ),
        difference=difference,
        density=statistics.fmean(
            statistics.fmean(row.density for row in cell.rows) for cell in cells
        ),
        estimation=statistics.fmean(
            statistics.fmean(row.estimation for row in cell.rows) for cell in cells
        ),
        # Times of several lengths have no common median that would mean something.
        seconds=_seconds(
            [
                timing
                for (method, _, length), found in sorted(clocks.items())
                if method == label and (length,) == lengths
                for timing in found
            ]
        ),
    )


def _seconds(timings: Sequence[PromptTiming]) -> Seconds | None:
    if not timings:
        return None
    indices = [timing.index for timing in timings if timing.index is not None]
    return Seconds(
        prompts=len(timings),
        ttft=statistics.median(timing.ttft for timing in timings),
        attention=statistics.median(timing.attention for timing in timings),
        index=statistics.median(indices) if len(indices) == len(timings) else None,
    )


def name_methods(plans: Sequence[MethodPlan]) -> tuple[MethodInfo, ...]:
    """The methods with names that tell them apart."""
    methods: dict[tuple[str, str], list[MethodPlan]] = {}
    for plan in plans:
        methods.setdefault((method_name(plan.point), plan.sweep), []).append(plan)
    return tuple(
        MethodInfo(
            label=plan.label,
            name=_short_name(plan, methods[method_name(plan.point), plan.sweep]),
            family=plan.family,
            point=plan.point,
            samples=plan.samples,
        )
        for plan in plans
    )


def _short_name(plan: MethodPlan, alike: Sequence[MethodPlan]) -> str:
    """The method with its plan, and with other settings where it departs from most of its name."""
    name = method_name(plan.point)
    # The plan that a point names says most.
    keys = sorted(fields_of(plan.point), key=lambda key: key != "plan")
    settings = ""
    for key in keys:
        values = [getattr(other.point, key) for other in alike]
        value = getattr(plan.point, key)
        rare = 2 * values.count(value) <= len(values)
        if rare or (key == "plan" and values.count(value) < len(values)):
            settings += f" {key}={value}"
    return name + (f"%{plan.profile}" if plan.profile else "") + settings
