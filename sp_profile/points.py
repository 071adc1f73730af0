"""The operating points that a profile ships."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sp_profile.run_config import RunConfig
from sp_runtime.operating_point import OperatingPoint, default_point
from sp_runtime.profile import DEFAULT_POINT, NamedPoint


@dataclass(frozen=True, kw_only=True, slots=True)
class PointSettings:
    """Thresholds in sqrtJSD (nats) taken from a calibration; None: the published number, and for
    drift no guard. min_tokens: shorter sequences are dense."""

    drift: float | None
    delta: float | None
    tau: float | None
    min_tokens: int


def named_points(run: RunConfig, settings: PointSettings) -> tuple[NamedPoint, ...]:
    """default (the plan), paper, release and vertical_slash, all at the run's gamma and budgets.

    A calibrated delta and tau go into rule paper alone; release keeps its authors' tau.
    """

    def point(base: OperatingPoint) -> OperatingPoint:
        return dataclasses.replace(
            base,
            gamma=run.gamma,
            min_budget=run.settings.min_budget,
            max_budget=run.settings.max_budget,
            slash_cover=run.settings.slash_cover,
            sink=run.settings.sink,
            stride=run.sample_stride,
            min_tokens=settings.min_tokens,
        )

    def of_masses(base: OperatingPoint) -> OperatingPoint:
        masks = run.settings
        return dataclasses.replace(
            point(base), local_blocks=masks.local_blocks, row_slack=masks.row_slack
        )

    plan = dataclasses.replace(default_point("share", "plan"), drift=settings.drift)
    paper = default_point("share", "paper")
    paper = dataclasses.replace(
        paper,
        delta=paper.delta if settings.delta is None else settings.delta,
        tau=paper.tau if settings.tau is None else settings.tau,
    )
    return (
        NamedPoint(name=DEFAULT_POINT, point=of_masses(plan)),
        NamedPoint(name="paper", point=point(paper)),
        NamedPoint(name="release", point=point(default_point("share", "release"))),
        NamedPoint(name="vertical_slash", point=point(default_point("vertical_slash", "plan"))),
    )
