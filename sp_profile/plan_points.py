"""Plans over a range of targets: the curve that an operating point is chosen from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sp_profile.plan_data import PlanTables, Progress, load_tables
from sp_profile.plan_types import TARGETS, PlanCurve, PlanSettings
from sp_profile.planning import make_plan
from sp_profile.run_config import RunConfig
from sp_profile.run_folder import Run, open_run


def make_plans(
    run: Path | Run,
    targets: Sequence[float] = TARGETS,
    settings: PlanSettings | None = None,
    progress: Progress | None = None,
    *,
    thorough: bool = True,
) -> PlanCurve:
    """One plan for each mean recall in `targets`, ascending; settings hold for all of them.

    A floor in the settings holds as it is; without one each target brings its own. thorough: leave
    each task out in turn, which takes as long again for every task.
    Raises UsageError (no or an unfinished run, no prompt that is long enough),
    CorruptArtefactError.
    """
    settings = PlanSettings() if settings is None else settings
    run = run if isinstance(run, Run) else open_run(run)
    tables = load_tables(run, min_length=settings.min_length, progress=progress)
    return plan_curve(run.config, tables, targets, settings, thorough=thorough)


def plan_curve(
    config: RunConfig,
    tables: PlanTables,
    targets: Sequence[float],
    settings: PlanSettings,
    *,
    thorough: bool = True,
) -> PlanCurve:
    """`make_plans` on tables that are loaded."""
    points = [
        make_plan(tables, dataclasses.replace(settings, target_recall=target), thorough=thorough)
        for target in sorted(set(targets))
    ]
    return PlanCurve(
        model=config.model,
        block_size=config.block_size,
        min_length=settings.min_length,
        prompts=len(tables.prompts),
        points=tuple(points),
        notes=(
            "cost: blocks computed and spent on estimates, over causal blocks",
            "held out: chosen on one half of the prompts, measured on the other, both ways",
            "oracle: each head's own exact mask, whose estimate is not counted",
        ),
    )
