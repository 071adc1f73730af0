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
from sp_profile.eval.results import EvalSummary
from sp_profile.eval.statistics import Estimate
from sp_profile.eval.stored import complete_part, read_stored
from sp_profile.eval.summary import Overview, PairedScores, summarise
from sp_runtime.profile import Profile, load_profile


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One method minus another on the same prompts, over some lengths. score: mean over tasks and
    lengths; cost: blocks and estimates over causal blocks; density: blocks alone."""

    lengths: tuple[int, ...]
    prompts: int
    score: Estimate
    density: float
    cost: float


class PlanEvaluation:
    """The complete part of an evaluation, and what lies beside it. profiles: by method's name."""

    def __init__(
        self, folder: Path, curves: Path | None, profiles: dict[str, Path], reference: str
    ) -> None:
        self.summary: EvalSummary
        self.summary, self.whole = read_stored(folder)
        self.part, self.left_out = complete_part(self.whole)
        self.paired = PairedScores(self.part.config, self.part.cells)
        self.overview: Overview = summarise(self.part, None, self.paired)
        self.equal: EqualDensity = equal_density(self.overview, self.paired, reference=reference)
        self.curves = () if curves is None else read_curves(curves)
        self.folders = profiles
        self.profiles: dict[str, Profile] = {n: load_profile(p) for n, p in profiles.items()}

    @property
    def methods(self) -> tuple[MethodPlan, ...]:
        return self.paired.methods

    def lengths_of(self, label: str) -> list[int]:
        return [row.length for row in self.overview.lengths if row.method == label and row.length]

    def difference(
        self, one: str, other: str, lengths: tuple[int, ...] | None = None
    ) -> Difference | None:
        """Paired over the lengths (all that both have); None where there is none."""
        both = [n for n in self.lengths_of(one) if n in self.lengths_of(other)]
        chosen = tuple(n for n in both if lengths is None or n in lengths)
        if not chosen:
            return None
        strata, densities, costs, prompts = [], [], [], 0
        for length in chosen:
            for task in self.paired.common_tasks(length):
                pair = self.paired.matrix([one, other], task, length)
                strata.append((f"{task}/{length}", pair[:, 0] - pair[:, 1]))
                prompts += len(pair)
                cells = [self.paired.cell(label, task, length) for label in (one, other)]
                rows = [cell.rows[: len(pair)] for cell in cells if cell is not None]
                blocks = [statistics.fmean(r.density for r in part) for part in rows]
                extra = [statistics.fmean(r.estimation for r in part) for part in rows]
                densities.append(blocks[0] - blocks[1])
                costs.append(blocks[0] + extra[0] - blocks[1] - extra[1])
        return Difference(
            lengths=chosen,
            prompts=prompts,
            score=self.paired.bootstrap.stratified_mean(strata),
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
