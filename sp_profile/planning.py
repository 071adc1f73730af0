"""The per-head plan: for every head the assignment of fewest blocks at a recall floor.

Costs are blocks, estimation included, over the causal blocks of one head. Heads are numbered in
(layer, head) order; K counts the run's plan candidates.

Choice: an assignment is eligible where its recall reaches the floor on the mean over the prompts
and comes within `task_slack` of it on the mean of every task. A head may borrow from a head of an
earlier layer that is itself computed "sampled" (with the run's own stride and gamma, for which the
borrowers' recall was measured) or "dense" (with one more pass for its block mass). The search is
`plan_search.search`. Where every task has two prompts the choice is made on half of them and
checked on the other half; a borrowing that misses the floor there, or on some task over all
prompts, is dropped for good.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sp_profile.evidence import MASS_PASS_COST, cost_at_recall
from sp_profile.plan_search import NOBODY, Assignment, LendingMode, search
from sp_runtime.profile import ASSIGNMENTS, HeadPlan, HeadRef, Plan

if TYPE_CHECKING:
    from sp_profile.candidates import Candidate

Matrix = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]

_SAMPLED, _DENSE = 0, 1


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanMeasurements:
    """Means over one set of calibration prompts; `worst_*` are the lowest mean of a task.

    candidate_*: float64 [LH, K]. recall_exact, recall_sampled and their worst: float64 [LH, LH],
    entry [b, l] for head b under l's mask. density, sampled_density: float64 [LH], of the masks
    lent. row_estimate: cost of one head's last-row estimate. prompts: how many.
    """

    prompts: int
    candidate_cost: Matrix
    candidate_recall: Matrix
    worst_candidate_recall: Matrix
    recall_exact: Matrix
    worst_recall_exact: Matrix
    recall_sampled: Matrix
    worst_recall_sampled: Matrix
    density: Matrix
    sampled_density: Matrix
    row_estimate: float


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSettings:
    """recall_floor in (0, 1]; gamma, sample_stride: the run's, of the masks that are lent.

    guarded: the drift guard is on, so lenders and borrowers pay a last-row estimate.
    task_slack: how far under the floor the mean of one task may lie. held_out_slack: how far under
    it a borrower's mean over the prompts not chosen on.
    """

    recall_floor: float
    gamma: float
    sample_stride: int
    guarded: bool = False
    task_slack: float = 0.05
    held_out_slack: float = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanData:
    """What a plan is chosen from. layers, numbers: int32 [LH], layer and head of each head.

    everything: means over all prompts. chosen, held_out: over two halves, or None where some task
    has a single prompt.
    """

    layers: Ints
    numbers: Ints
    candidates: tuple[Candidate, ...]
    everything: PlanMeasurements
    chosen: PlanMeasurements | None = None
    held_out: PlanMeasurements | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """The plan on the prompts it was not chosen on: means over heads, and how many heads lie more
    than the slack under the floor."""

    prompts: int
    cost: float
    recall: float
    misses: int


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSummary:
    """What a plan promises, as means over heads and calibration prompts.

    counts: heads by assignment. lenders: heads that lend. vertical_slash_*: vertical-slash alone,
    each head at its cheapest gamma that reaches the same floor (dense where none does).
    uniform_vertical_slash_cost: vertical-slash with one gamma for all heads, at the plan's mean
    recall. dropped: borrowings that failed the held-out check or the check of every task.
    held_out: None where the plan was chosen on all prompts. notes: sentences for people.
    """

    counts: tuple[tuple[str, int], ...]
    lenders: int
    cost: float
    recall: float
    vertical_slash_cost: float
    vertical_slash_recall: float
    uniform_vertical_slash_cost: float
    dropped: int
    held_out: HeldOut | None
    notes: tuple[str, ...]


def make_plan(data: PlanData, settings: PlanSettings) -> tuple[Plan, PlanSummary]:
    """Choose, check and describe the plan; deterministic."""
    option, assignment, dropped = _choose(data, settings)
    cost, recall = _evaluate(data.everything, option, assignment, settings)
    heads = tuple(
        _head_plan(head, data, settings, option, assignment, float(recall[head]), float(cost[head]))
        for head in range(len(data.layers))
    )
    plan = Plan(recall_floor=settings.recall_floor, heads=heads)
    return plan, _summary(data, settings, plan, option, assignment, dropped)


def own_options(measured: PlanMeasurements, settings: PlanSettings) -> tuple[Matrix, Matrix]:
    """float64 [LH, K + 1] cost (inf where not eligible) and recall; the last column is dense."""
    ones = np.ones((len(measured.density), 1))
    eligible = (measured.candidate_recall >= settings.recall_floor) & (
        measured.worst_candidate_recall >= settings.recall_floor - settings.task_slack
    )
    cost = np.where(eligible, measured.candidate_cost, np.inf)
    return np.hstack([cost, ones]), np.hstack([measured.candidate_recall, ones])


def lending_modes(
    measured: PlanMeasurements, data: PlanData, settings: PlanSettings
) -> tuple[LendingMode, LendingMode]:
    """The two ways of lending, sampled and dense, with what opening and borrowing cost."""
    guard = measured.row_estimate if settings.guarded else 0.0
    column = _lent_candidate(data.candidates, settings)
    if column is None:
        sampled = np.full(len(data.layers), np.inf)
    else:
        sampled = own_options(measured, settings)[0][:, column] + guard
    dense = np.full(len(data.layers), 1.0 + MASS_PASS_COST + guard)
    earlier = data.layers[None, :] < data.layers[:, None]

    def price(recall: Matrix, worst: Matrix, density: Matrix) -> Matrix:
        floor = settings.recall_floor
        allowed = earlier & (recall >= floor) & (worst >= floor - settings.task_slack)
        return np.where(allowed, density[None, :] + guard, np.inf)

    return (
        LendingMode(
            opening=sampled,
            price=price(
                measured.recall_sampled, measured.worst_recall_sampled, measured.sampled_density
            ),
        ),
        LendingMode(
            opening=dense,
            price=price(measured.recall_exact, measured.worst_recall_exact, measured.density),
        ),
    )


def _choose(data: PlanData, settings: PlanSettings) -> tuple[Ints, Assignment, int]:
    """Own option of each head, int32 [LH] (K: dense), the assignment, and how many were dropped."""
    measured = data.chosen or data.everything
    costs, _ = own_options(measured, settings)
    option = costs.argmin(1).astype(np.int32)
    own = costs.min(1)
    modes = lending_modes(measured, data, settings)
    found = search(own, modes)
    kept = np.array(
        [
            lender != NOBODY and _holds(head, lender, int(found.mode[lender]), data, settings)
            for head, lender in enumerate(found.lender)
        ]
    )
    dropped = int(((found.lender != NOBODY) & ~kept).sum())
    if dropped:
        # Search again among the surviving borrowings alone: nothing unchecked can come in.
        found = search(own, tuple(_only(mode, n, found, kept) for n, mode in enumerate(modes)))
    option[found.mode == _DENSE] = len(data.candidates)
    lent = _lent_candidate(data.candidates, settings)
    if lent is not None:
        option[found.mode == _SAMPLED] = lent
    return option, found, dropped


def _holds(head: int, lender: int, mode: int, data: PlanData, settings: PlanSettings) -> bool:
    """Whether a borrowing keeps the floor on the held-out prompts and on every task."""
    worst = data.everything
    table = worst.worst_recall_sampled if mode == _SAMPLED else worst.worst_recall_exact
    if table[head, lender] < settings.recall_floor - settings.task_slack:
        return False
    if data.held_out is None:
        return True
    held_out = data.held_out
    means = held_out.recall_sampled if mode == _SAMPLED else held_out.recall_exact
    return bool(means[head, lender] >= settings.recall_floor - settings.held_out_slack)


def _only(
    mode: LendingMode, number: int, found: Assignment, kept: npt.NDArray[np.bool_]
) -> LendingMode:
    """The mode with every price but those of the kept borrowings taken away."""
    price = np.full_like(mode.price, np.inf)
    for head in np.flatnonzero(kept):
        lender = found.lender[head]
        if found.mode[lender] == number:
            price[head, lender] = mode.price[head, lender]
    return LendingMode(opening=mode.opening, price=price)


def _evaluate(
    measured: PlanMeasurements, option: Ints, assignment: Assignment, settings: PlanSettings
) -> tuple[Matrix, Matrix]:
    """float64 [LH] cost and recall of an assignment on some prompts."""
    heads = np.arange(len(option))
    ones = np.ones((len(option), 1))
    cost = np.hstack([measured.candidate_cost, ones])[heads, option]
    recall = np.hstack([measured.candidate_recall, ones])[heads, option]
    guard = measured.row_estimate if settings.guarded else 0.0
    for head, lender in enumerate(assignment.lender):
        if assignment.mode[head] == _DENSE:
            cost[head], recall[head] = 1.0 + MASS_PASS_COST + guard, 1.0
        elif assignment.mode[head] == _SAMPLED:
            cost[head] += guard
        elif lender != NOBODY and assignment.mode[lender] == _SAMPLED:
            cost[head] = measured.sampled_density[lender] + guard
            recall[head] = measured.recall_sampled[head, lender]
        elif lender != NOBODY:
            cost[head] = measured.density[lender] + guard
            recall[head] = measured.recall_exact[head, lender]
    return cost, recall


def _head_plan(
    head: int,
    data: PlanData,
    settings: PlanSettings,
    option: Ints,
    assignment: Assignment,
    recall: float,
    cost: float,
) -> HeadPlan:
    layer, number = int(data.layers[head]), int(data.numbers[head])
    recall = min(max(recall, 0.0), 1.0)  # float32 sums of masses may pass 1 by rounding
    lender = int(assignment.lender[head])
    if lender != NOBODY:
        return HeadPlan(
            layer=layer,
            head=number,
            assignment="borrow",
            gamma=settings.gamma,
            lender=HeadRef(int(data.layers[lender]), int(data.numbers[lender])),
            recall=recall,
            cost=cost,
        )
    if option[head] == len(data.candidates):
        lends = assignment.mode[head] == _DENSE
        return HeadPlan(
            layer=layer,
            head=number,
            assignment="dense",
            gamma=settings.gamma if lends else 1.0,
            recall=recall,
            cost=cost,
        )
    candidate = data.candidates[option[head]]
    return HeadPlan(
        layer=layer,
        head=number,
        assignment=candidate.assignment,
        gamma=candidate.gamma,
        window=candidate.window,
        stride=candidate.stride,
        recall=recall,
        cost=cost,
    )


def _summary(
    data: PlanData,
    settings: PlanSettings,
    plan: Plan,
    option: Ints,
    assignment: Assignment,
    dropped: int,
) -> PlanSummary:
    counted: Counter[str] = Counter(head.assignment for head in plan.heads)
    recall = float(np.mean([head.recall for head in plan.heads]))
    vs_cost, vs_recall = _vertical_slash_alone(data, settings)
    columns = _vertical_slash_columns(data.candidates)
    everything = data.everything
    held_out = None
    if data.held_out is not None:
        costs, recalls = _evaluate(data.held_out, option, assignment, settings)
        floor = settings.recall_floor - settings.held_out_slack
        held_out = HeldOut(
            prompts=data.held_out.prompts,
            cost=float(costs.mean()),
            recall=float(recalls.mean()),
            misses=int((recalls < floor).sum()),
        )
    return PlanSummary(
        counts=tuple((name, counted[name]) for name in ASSIGNMENTS if counted[name]),
        lenders=int((assignment.mode != NOBODY).sum()),
        cost=float(np.mean([head.cost for head in plan.heads])),
        recall=recall,
        vertical_slash_cost=vs_cost,
        vertical_slash_recall=vs_recall,
        uniform_vertical_slash_cost=cost_at_recall(
            everything.candidate_cost[:, columns].mean(0),
            everything.candidate_recall[:, columns].mean(0),
            recall,
        ),
        dropped=dropped,
        held_out=held_out,
        notes=_notes(data, settings, dropped),
    )


def _vertical_slash_alone(data: PlanData, settings: PlanSettings) -> tuple[float, float]:
    """Mean cost and recall of vertical-slash (or dense) under the plan's own rule of choice."""
    keep = [*_vertical_slash_columns(data.candidates), len(data.candidates)]
    costs, _ = own_options(data.chosen or data.everything, settings)
    option = np.asarray(keep)[costs[:, keep].argmin(1)].astype(np.int32)
    nobody = np.full(len(option), NOBODY, dtype=np.int32)
    alone = Assignment(mode=nobody, lender=nobody, cost=costs.min(1))
    cost, recall = _evaluate(data.everything, option, alone, settings)
    return float(cost.mean()), float(recall.mean())


def _notes(data: PlanData, settings: PlanSettings, dropped: int) -> tuple[str, ...]:
    notes = []
    if data.held_out is None:
        notes.append("chosen on all prompts, unchecked: some task has fewer than two")
    else:
        notes.append(
            f"chosen on {data.chosen.prompts if data.chosen else 0} prompts, "
            f"checked on the other {data.held_out.prompts}"
        )
    if dropped:
        notes.append(f"{dropped} borrowings dropped: under the floor on the check or on some task")
    if _lent_candidate(data.candidates, settings) is None:
        notes.append(
            f"no sampled lender: the run did not measure sampled at stride "
            f"{settings.sample_stride} and gamma {settings.gamma:g}"
        )
    return tuple(notes)


def _vertical_slash_columns(candidates: tuple[Candidate, ...]) -> list[int]:
    return [k for k, one in enumerate(candidates) if one.assignment == "vertical_slash"]


def _lent_candidate(candidates: tuple[Candidate, ...], settings: PlanSettings) -> int | None:
    """The candidate whose mask a sampled lender lends, or None if the run did not measure it."""
    for number, one in enumerate(candidates):
        if (one.assignment, one.stride, one.gamma) == (
            "sampled",
            settings.sample_stride,
            settings.gamma,
        ):
            return number
    return None
