"""What the report scripts read: an evaluation's complete part, its curves and its profiles."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sp_profile.curves import CurvePoint
from sp_profile.eval.equal_density import EqualDensity, equal_density
from sp_profile.eval.methods import DENSE, MethodPlan
from sp_profile.eval.recalls import PairedRecalls
from sp_profile.eval.results import EvalSummary
from sp_profile.eval.statistics import Estimate
from sp_profile.eval.stored import complete_part, read_stored, stored_recalls
from sp_profile.eval.summary import Overview, PairedScores, summarise
from sp_runtime.profile import Profile, load_profile


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One method minus another on the prompts that both have seen, over some lengths.

    tasks: those that both have finished at one of the lengths. mean: score of the first
    method; score: the difference, both means over tasks and lengths;
    cost: blocks and estimates over causal blocks; density: blocks alone.
    """

    lengths: tuple[int, ...]
    tasks: tuple[str, ...]
    prompts: int
    mean: float
    score: Estimate
    density: float
    cost: float


class PlanEvaluation:
    """The complete part of an evaluation, and what lies beside it. profiles: by method's name.

    recalls: None without a recall pass.
    """

    def __init__(
        self, folder: Path, curves: Path | None, profiles: dict[str, Path], reference: str
    ) -> None:
        self.summary: EvalSummary
        self.summary, self.whole = read_stored(folder)
        self.part, self.left_out = complete_part(self.whole)
        self.paired = PairedScores(self.part.config, self.part.cells)
        # All that is finished: two methods are compared on the tasks that these two have.
        self.finished = PairedScores(self.whole.config, self.whole.cells)
        self.overview: Overview = summarise(self.part, None, self.paired)
        self.equal: EqualDensity = equal_density(self.overview, self.paired, reference=reference)
        cells = stored_recalls(folder)
        found = self.summary.recalls
        self.recalls = None if found is None else PairedRecalls(found.methods, cells)
        self.curves = () if curves is None else read_curves(curves)
        self.folders = profiles
        self.profiles: dict[str, Profile] = {n: load_profile(p) for n, p in profiles.items()}

    @property
    def methods(self) -> tuple[MethodPlan, ...]:
        return self.paired.methods

    def difference(
        self, one: str, other: str, lengths: tuple[int, ...] | None = None
    ) -> Difference | None:
        """Paired over the lengths (all that both have); None where there is none."""
        strata, means, densities, costs, prompts = [], [], [], [], 0
        chosen: dict[int, tuple[str, ...]] = {}
        for length in self.finished.lengths() if lengths is None else lengths:
            if tasks := self.finished.common_tasks(length, (one, other)):
                chosen[length] = tasks
        for length, tasks in chosen.items():
            for task in tasks:
                pair = self.finished.matrix([one, other], task, length)
                strata.append((f"{task}/{length}", pair[:, 0] - pair[:, 1]))
                means.append(float(pair[:, 0].mean()))
                prompts += len(pair)
                cells = [self.finished.cell(label, task, length) for label in (one, other)]
                rows = [cell.rows[: len(pair)] for cell in cells if cell is not None]
                blocks = [statistics.fmean(r.density for r in part) for part in rows]
                extra = [statistics.fmean(r.estimation for r in part) for part in rows]
                densities.append(blocks[0] - blocks[1])
                costs.append(blocks[0] + extra[0] - blocks[1] - extra[1])
        if not strata:
            return None
        return Difference(
            lengths=tuple(chosen),
            tasks=tuple(dict.fromkeys(task for tasks in chosen.values() for task in tasks)),
            prompts=prompts,
            mean=statistics.fmean(means),
            score=self.finished.bootstrap.stratified_mean(strata),
            density=statistics.fmean(densities),
            cost=statistics.fmean(costs),
        )

    def twins(self, field: str, special: object) -> Iterator[tuple[MethodPlan, MethodPlan]]:
        """Methods with point.field == special, each with the one that differs in it alone."""
        for one in self.methods:
            if one.label == DENSE or getattr(one.point, field) != special:
                continue
            for other in self.methods:
                if other.point.method == one.point.method and other.profile == one.profile:
                    value = getattr(other.point, field)
                    same = dataclasses.replace(one.point, **{field: value}) == other.point
                    if value != special and same:
                        yield one, other

    def same_point(self, one: str, other: str) -> Iterator[tuple[MethodPlan, MethodPlan]]:
        """Methods of profile `one` with those of profile `other` at the same operating point."""
        for first in self.methods:
            for second in self.methods:
                names = (first.profile, second.profile) == (one, other)
                if names and first.point == second.point:
                    yield first, second

    def point(self, name: str) -> MethodPlan | None:
        """The method that runs the plan of this name, at the most samples."""
        found = [m for m in self.methods if m.point.plan == name and m.profile == ""]
        return max(found, key=lambda m: m.samples, default=None)

    def timed_overview(self) -> Overview:
        """The complete part with the times of the timing pass."""
        times = {(row.method, row.length): row.seconds for row in self.summary.overview.lengths}
        rows = [
            dataclasses.replace(row, seconds=times.get((row.method, row.length)))
            for row in self.overview.lengths
        ]
        return dataclasses.replace(self.overview, lengths=tuple(rows))

    def first_token_ms(self, label: str, length: int) -> float | None:
        """Median over the cells that were timed, in milliseconds."""
        found = [
            cell.seconds.ttft
            for cell in self.summary.overview.cells
            if cell.method == label and cell.length == length and cell.seconds is not None
        ]
        return 1e3 * statistics.median(found) if found else None


def read_curves(path: Path) -> tuple[CurvePoint, ...]:
    """The rows of `sp-profile curves RUN -o FILE.parquet`."""
    import pyarrow.parquet as pq

    names = {field.name for field in dataclasses.fields(CurvePoint)}
    rows = pq.read_table(path).to_pylist()
    return tuple(CurvePoint(**{k: v for k, v in row.items() if k in names}) for row in rows)


def at_recall(points: list[CurvePoint], recall: float, value: str = "cost") -> float | None:
    """A figure of a method's curve at a mean recall, linear between its settings; None outside."""
    ordered = sorted(points, key=lambda point: (point.recall, -point.cost))
    recalls = [point.recall for point in ordered]
    if not recalls or not recalls[0] <= recall <= recalls[-1]:
        return None
    return float(np.interp(recall, recalls, [getattr(point, value) for point in ordered]))
