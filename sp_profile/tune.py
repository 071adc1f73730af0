"""The solver: plans at several recalls from one run, and the one that meets a goal.

The recalls are a ladder in which the attention mass missed grows in equal ratios. The goal picks a
rung, `balanced`; `fast` misses about twice its mass and `safe` half of it. Where a model is given,
every rung is evaluated on retrieval prompts, paired with dense attention on the same ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from sp_profile.artefact import FOLDER_NAMES
from sp_profile.folder_swap import require_replaceable
from sp_profile.plan_data import length_class
from sp_profile.plan_points import make_plans
from sp_profile.plan_types import PlanCurve, PlannedPoint, PlanSettings
from sp_profile.plan_write import plan_point, require_own_run, with_plans
from sp_profile.rewrite import rewrite_profile
from sp_profile.run_folder import Run, open_run
from sp_profile.tune_trial import evaluate_candidates
from sp_profile.tune_types import (
    BALANCED,
    FAST,
    SAFE,
    TUNED,
    CurvePoint,
    Goal,
    Measured,
    Progress,
    TuneConfig,
    TuneReport,
)
from sp_runtime.errors import UsageError
from sp_runtime.profile import PROFILE_NAME, Profile


def tune(
    source: Path,
    profile: Profile,
    run_path: Path,
    target: Path,
    config: TuneConfig,
    progress: Progress,
) -> tuple[Profile, TuneReport]:
    """Publish the profile of folder `source` with the points fast, balanced and safe.

    Returns it as published. Raises UsageError (another run, a goal that no plan meets, prompts that
    are calibration prompts), ProfileMismatchError, CorruptArtefactError, ResourceError.
    """
    require_replaceable(target, FOLDER_NAMES, PROFILE_NAME, overwrite=config.overwrite)
    run = open_run(run_path)
    require_own_run(profile, run)
    lengths = config.lengths or _paying_lengths(run, config.min_tokens)
    curve = make_plans(
        run,
        config.goal.ladder(),
        PlanSettings(
            min_length=_least_tokens(min(lengths)),
            kind_prices=config.kind_prices,
            without=config.without,
        ),
        lambda done, total: progress("plans", done, total),
        thorough=False,
    )
    point = plan_point(profile, run, config.min_tokens)
    named = {f"r{number:02}": planned.plan for number, planned in enumerate(curve.points)}
    measured: dict[str, Measured] = {}
    if config.trial is not None:
        candidates = with_plans(profile, point, named)
        measured = evaluate_candidates(candidates, tuple(named), lengths, config.trial, progress)
    rows = [
        _curve_point(planned, measured.get(name))
        for name, planned in zip(named, curve.points, strict=True)
    ]
    chosen = choose(rows, config.goal)
    plans = {name: curve.points[number].plan for name, number in chosen.items()}
    published = rewrite_profile(
        source,
        profile,
        with_plans(profile, point, plans),
        target,
        settings=config.settings,
        overwrite=config.overwrite,
    )
    report = TuneReport(
        goal=config.goal,
        min_tokens=config.min_tokens,
        origin=config.origin,
        lengths=lengths,
        prompts=curve.prompts,
        curve=_named(rows, chosen),
        notes=_notes(curve, rows, chosen),
    )
    return published, report


def _curve_point(planned: PlannedPoint, measured: Measured | None) -> CurvePoint:
    assert planned.target is not None
    reference = planned.reference("vertical_slash")
    held_out = planned.held_out
    return CurvePoint(
        target=planned.target,
        cost=planned.outcome.cost,
        recall=planned.outcome.recall,
        recall_p10=planned.outcome.recall_p10,
        held_out_cost=None if held_out is None else held_out.cost,
        held_out_recall=None if held_out is None else held_out.recall,
        vertical_slash_cost=None if reference is None else reference.cost,
        ceiling_share=planned.ceiling_share,
        measured=measured,
        kinds=planned.summary.kinds_per_layer,
    )


def choose(rows: Sequence[CurvePoint], goal: Goal) -> dict[str, int]:
    """The rows of fast, balanced and safe; rows ascend by target.

    Raises UsageError where no row meets the goal.
    """
    balanced = _balanced(rows, goal)
    missed = 1 - rows[balanced].target

    def nearest_to(mass: float) -> int:
        return min(range(len(rows)), key=lambda n: abs(1 - rows[n].target - mass))

    return {FAST: nearest_to(2 * missed), BALANCED: balanced, SAFE: nearest_to(missed / 2)}


def _balanced(rows: Sequence[CurvePoint], goal: Goal) -> int:
    numbers = range(len(rows))
    if goal.kind == "target_recall":
        return min(numbers, key=lambda n: abs(rows[n].target - goal.value))
    if goal.kind == "target_density":
        within = [n for n in numbers if rows[n].cost <= goal.value]
        if not within:
            raise UsageError(
                f"no plan costs {goal.value:g} of the blocks or less",
                hint=f"the cheapest here costs {min(row.cost for row in rows):.3f}, at recall "
                f"{rows[0].target:g}",
            )
        return max(within)
    losses = [(n, row.measured) for n, row in enumerate(rows) if row.measured is not None]
    fit = [(found.cost, n) for n, found in losses if found.loss.mean <= goal.value]
    if not fit:
        least = min(found.loss.mean for _, found in losses)
        raise UsageError(
            f"no plan loses {goal.value:g} points or less", hint=f"the best loses {least:.1f}"
        )
    return min(fit)[1]


def _paying_lengths(run: Run, min_tokens: int) -> tuple[int, ...]:
    """The longest prompt of each length class of the run that sparse attention pays at."""
    classes: dict[int, int] = {}
    for prompt in run.config.prompts:
        if prompt.tokens >= min_tokens:
            kind = length_class(prompt.tokens)
            classes[kind] = max(classes.get(kind, 0), prompt.tokens)
    if not classes:
        longest = max(prompt.tokens for prompt in run.config.prompts)
        raise UsageError(
            f"sparse attention pays from {min_tokens} tokens on, and the longest prompt of "
            f"{run.path} has {longest}",
            hint="calibrate on longer prompts",
        )
    return tuple(sorted(classes.values()))


def _least_tokens(length: int) -> int:
    """Calibration prompts under so many tokens are of a shorter class than `length`."""
    return length_class(length) // 2 + 1


def _named(rows: Sequence[CurvePoint], chosen: dict[str, int]) -> tuple[CurvePoint, ...]:
    return tuple(
        dataclasses.replace(row, names=tuple(name for name in TUNED if chosen[name] == number))
        for number, row in enumerate(rows)
    )


def _notes(curve: PlanCurve, rows: Sequence[CurvePoint], chosen: dict[str, int]) -> tuple[str, ...]:
    notes = list(curve.notes)
    if len(set(chosen.values())) < len(chosen):
        notes.append("the ladder ends here: two of the points are the same plan")
    balanced = rows[chosen[BALANCED]].measured
    if balanced is not None and balanced.loss.high > balanced.loss.mean + 1:
        notes.append(
            f"the interval of balanced's loss reaches {balanced.loss.high:.1f} points; more "
            "--samples make it narrower"
        )
    return tuple(notes)
