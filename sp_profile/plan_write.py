"""A plan as a profile: a new one made of a run, or one more plan of a profile that exists."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from sp_profile.cluster import build_with_report
from sp_profile.cluster_types import ClusterConfig, Progress
from sp_profile.plan_types import PlanSettings
from sp_profile.rewrite import rewrite_profile
from sp_profile.run_folder import Run
from sp_runtime.errors import ProfileMismatchError, UsageError
from sp_runtime.method_spec import with_method
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.profile import (
    DEFAULT_POINT,
    NamedPlan,
    NamedPoint,
    Plan,
    Profile,
    load_profile,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanTarget:
    """Where a plan goes.

    source: the profile that it is added to, whose folder stays as it is; None: a profile made of
    the run. name: of the plan and of its operating point; "": the profile's own plan. min_tokens:
    shorter prompts are dense at its point. settings: as in `write_profile`.
    """

    output: Path
    source: Path | None = None
    name: str = ""
    min_tokens: int = 1024
    settings: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.name and self.source is None:
            raise UsageError(
                "a named plan is added to a profile", hint="give --from, or leave --name out"
            )
        if self.name == DEFAULT_POINT:
            raise UsageError(f"{DEFAULT_POINT!r} is the profile's own point", hint="another name")


def write_plan(
    run: Run, plan: Plan, settings: PlanSettings, target: PlanTarget, progress: Progress
) -> Profile:
    """Publish the plan; returns the profile as published.

    Raises UsageError, ProfileMismatchError (another model), CorruptArtefactError, ResourceError.
    """
    if target.source is None:
        return build_with_report(
            run.path, target.output, _as_config(settings, target), progress
        ).profile
    profile = load_profile(target.source)
    require_own_run(profile, run)
    point = plan_point(profile, run, target.min_tokens)
    if target.name:
        changed = with_plans(profile, point, {target.name: plan})
    else:
        points = tuple(
            NamedPoint(name=one.name, point=point) if one.name == DEFAULT_POINT else one
            for one in profile.points
        )
        changed = dataclasses.replace(profile, plan=plan, points=points)
    return rewrite_profile(
        target.source,
        profile,
        changed,
        target.output,
        settings=target.settings,
        overwrite=target.overwrite,
    )


def require_own_run(profile: Profile, run: Run) -> None:
    """The run must be what the profile was made from: else calibration prompts could be told from
    evaluation prompts no more."""
    if profile.model != run.fingerprint:
        raise ProfileMismatchError(
            f"{run.path} is a run of another model than the profile's", hint="name its own run"
        )
    known = {prompt.sha256 for prompt in profile.calibration.prompts}
    strange = {prompt.sha256 for prompt in run.config.prompts} - known
    if strange - {entry.unit for entry in run.quarantined}:
        raise UsageError(
            f"{run.path} holds prompts that the profile was not made from",
            hint="name the run that `sp-profile cluster` made the profile from",
        )
    if profile.calibration.block_size != run.config.block_size:
        raise UsageError(f"{run.path} has another block size than the profile")


def plan_point(profile: Profile, run: Run, min_tokens: int) -> OperatingPoint:
    """Rule plan with the profile's budgets, as the run's masks were measured."""
    return dataclasses.replace(
        with_method(profile.point(), "share", "plan"),
        min_tokens=min_tokens,
        local_blocks=run.config.settings.local_blocks,
        row_slack=run.config.settings.row_slack,
        plan="",
    )


def with_plans(profile: Profile, point: OperatingPoint, plans: Mapping[str, Plan]) -> Profile:
    """The profile with plans and points of these names, in the place of those it had."""
    kept_plans = tuple(one for one in profile.plans if one.name not in plans)
    kept_points = tuple(one for one in profile.points if one.name not in plans)
    return dataclasses.replace(
        profile,
        plans=(*kept_plans, *(NamedPlan(name=name, plan=plan) for name, plan in plans.items())),
        points=(
            *kept_points,
            *(NamedPoint(name=n, point=dataclasses.replace(point, plan=n)) for n in plans),
        ),
    )


def _as_config(settings: PlanSettings, target: PlanTarget) -> ClusterConfig:
    return ClusterConfig(
        target_recall=settings.target_recall,
        recall_floor=settings.recall_floor,
        tail_gain=settings.tail_gain,
        kind_prices=settings.kind_prices,
        without=settings.without,
        min_length=settings.min_length,
        lending=settings.lending,
        same_layer=settings.same_layer,
        min_tokens=target.min_tokens,
        settings=target.settings,
        overwrite=target.overwrite,
    )
