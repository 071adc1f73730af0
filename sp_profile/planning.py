"""The per-head plan of a profile, with what it promises on the prompts that it was chosen on and
on others.

Costs are blocks, estimation included, over the causal blocks of one head. `plan_choice` says what
is minimised, `plan_solver` what is checked.
"""

from __future__ import annotations

import dataclasses
from collections import Counter

import numpy as np

from sp_profile.plan_choice import Choice, Problem, evaluate, outcome_of
from sp_profile.plan_data import PlanTables, length_class
from sp_profile.plan_kinds import FREE, Kinds
from sp_profile.plan_reference import reference, reference_names
from sp_profile.plan_search import NOBODY
from sp_profile.plan_solver import Solution, held_out, interval, left_out, solve
from sp_profile.plan_types import (
    NamedOutcome,
    PlannedPoint,
    PlanSettings,
    PlanSummary,
    Reference,
)
from sp_runtime.profile import ASSIGNMENTS, HeadPlan, HeadRef, Plan

ORACLE = "oracle"
_MIN_CEILING = 0.005  # blocks that the oracle must save for a share of them to mean anything


def make_plan(tables: PlanTables, settings: PlanSettings, *, thorough: bool = True) -> PlannedPoint:
    """Choose, check and describe a plan; deterministic, whatever the order of the prompts.

    thorough: leave each task out in turn as well.
    """
    solution = solve(Problem(tables, tables.everyone, settings))
    cost, recall = evaluate(tables, tables.everyone, solution.choice, settings)
    plan = Plan(
        recall_floor=settings.floor,
        heads=head_plans(tables, solution.choice, cost.mean(0), recall.mean(0)),
        target_recall=settings.target_recall,
        min_length=settings.min_length or None,
    )
    return PlannedPoint(plan=plan, summary=_summary(tables, settings, plan, solution, thorough))


def head_plans(
    tables: PlanTables, choice: Choice, cost: np.ndarray, recall: np.ndarray
) -> tuple[HeadPlan, ...]:
    """The choice as the profile says it; cost, recall: float64 [LH]."""
    plans = []
    for head, (layer, number) in enumerate(zip(tables.layers, tables.numbers, strict=True)):
        lender, column = int(choice.lender[head]), int(choice.option[head])
        plan = HeadPlan(
            layer=int(layer),
            head=int(number),
            assignment="dense",
            gamma=1.0,
            # float32 sums of masses may pass 1 by rounding
            recall=min(max(float(recall[head]), 0.0), 1.0),
            cost=float(cost[head]),
        )
        if lender != NOBODY:
            plan = dataclasses.replace(
                plan,
                assignment="borrow",
                gamma=tables.lending[choice.mode[lender]].gamma,
                lender=HeadRef(int(tables.layers[lender]), int(tables.numbers[lender])),
            )
        elif column < len(tables.candidates):
            one = tables.candidates[column]
            # Peers are not eligible.
            assert one.assignment != "flexprefill"
            assert one.assignment != "xattention"
            plan = dataclasses.replace(
                plan,
                assignment=one.assignment,
                gamma=one.gamma,
                window=one.window,
                stride=one.stride,
            )
        elif choice.mode[head] != NOBODY:
            plan = dataclasses.replace(plan, gamma=tables.lending[choice.mode[head]].gamma)
        plans.append(plan)
    return tuple(plans)


def _summary(
    tables: PlanTables,
    settings: PlanSettings,
    plan: Plan,
    solution: Solution,
    thorough: bool,
) -> PlanSummary:
    everyone = tables.everyone
    cost, recall = evaluate(tables, everyone, solution.choice, settings)
    outcome = outcome_of(cost, recall)
    references = tuple(
        reference(tables, everyone, name, outcome.recall) for name in reference_names(tables)
    )
    by_name = {one.method: one.cost for one in references}
    alone = _vertical_slash_alone(tables, settings)
    tested = held_out(tables, settings, solution.prices)
    counted: Counter[str] = Counter(head.assignment for head in plan.heads)
    kinds = Kinds(tables.candidates, tables.layers, settings.kind_prices)
    used = kinds.used(solution.choice.option, solution.choice.lender != NOBODY)
    return PlanSummary(
        target=settings.target_recall,
        prompts=outcome.prompts,
        cost=outcome.cost,
        recall=outcome.recall,
        recall_p10=outcome.recall_p10,
        held_out=tested,
        left_out=left_out(tables, settings, solution.prices) if thorough else (),
        lengths=_by_length(tables, cost, recall),
        cost_interval=interval(cost),
        recall_interval=interval(recall),
        vertical_slash_cost=alone[0],
        vertical_slash_recall=alone[1],
        uniform_vertical_slash_cost=by_name.get("vertical_slash"),
        references=references,
        ceiling_share=ceiling_share(outcome.cost, references),
        counts=tuple((name, counted[name]) for name in ASSIGNMENTS if counted[name]),
        kinds=tuple((n, c) for n, c in zip(kinds.names, used.sum(0).tolist(), strict=True) if c),
        kinds_per_layer=float(used.sum(1).mean()),
        lenders=int((solution.choice.mode != NOBODY).sum()),
        dropped=solution.dropped,
        price=solution.prices.recall,
        tail_price=solution.prices.tail,
        notes=_notes(tables, settings, solution, tested is not None, outcome.recall),
    )


def ceiling_share(cost: float, references: tuple[Reference, ...]) -> float | None:
    """Saved blocks over vertical-slash, as a share of those that the oracle saves."""
    by_name = {one.method: one.cost for one in references}
    plain, ceiling = by_name.get("vertical_slash"), by_name.get(ORACLE)
    if plain is None or ceiling is None or plain - ceiling < _MIN_CEILING:
        return None
    return (plain - cost) / (plain - ceiling)


def _vertical_slash_alone(tables: PlanTables, settings: PlanSettings) -> tuple[float, float]:
    """Mean cost and recall of vertical-slash (or dense), chosen per head to the same target."""
    alone = dataclasses.replace(
        settings, lending=False, tail_gain=0.0, kind_prices=FREE, without=()
    )
    problem = Problem(tables, tables.everyone, alone, columns=tables.columns("vertical_slash"))
    choice = solve(problem).choice
    outcome = outcome_of(*evaluate(tables, tables.everyone, choice, alone))
    return outcome.cost, outcome.recall


def _by_length(
    tables: PlanTables, cost: np.ndarray, recall: np.ndarray
) -> tuple[NamedOutcome, ...]:
    classes = np.array([length_class(prompt.tokens) for prompt in tables.prompts])
    return tuple(
        NamedOutcome(
            name=str(one), outcome=outcome_of(cost[classes == one], recall[classes == one])
        )
        for one in sorted(set(classes.tolist()))
    )


def _notes(
    tables: PlanTables, settings: PlanSettings, solution: Solution, tested: bool, recall: float
) -> tuple[str, ...]:
    notes = [f"chosen on all prompts, {len(tables.prompts)} of them"]
    if tested:
        notes[0] += "; held out: chosen on half of them and measured on the other half, both ways"
    else:
        notes[0] += ", and not held out: some task has fewer than two"
    if solution.dropped:
        notes.append(
            f"{solution.dropped} borrowings dropped: they do not pay, or lie under the floor, in "
            f"{1 - settings.stability:.0%} of the bootstrap samples or more"
        )
    if not any(lending.column is not None for lending in tables.lending):
        notes.append("no sampled lender: the run did not measure one as a candidate")
    if settings.target_recall is not None and recall < settings.target_recall - 1e-6:
        notes.append(f"no plan reaches a mean recall of {settings.target_recall:g}")
    return tuple(notes)
