"""From prices to a plan: the tail, what is unstable, and how the choice does on other prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sp_profile.candidates import PEERS
from sp_profile.evidence import cost_at_recall
from sp_profile.measure import split_halves
from sp_profile.plan_choice import (
    TAIL,
    Choice,
    Matrix,
    Prices,
    Problem,
    edges,
    evaluate,
    outcome_of,
)
from sp_profile.plan_data import PlanTables, Rows
from sp_profile.plan_types import NamedOutcome, Outcome, PlanSettings, Reference

_TAIL_PRICE, _MAX_TAIL_PRICE = 2.0, 32.0
_TAIL_STEPS = 3
_OVERSHOOT = 0.001
_TAIL_MARGIN = 0.005  # prices are paid under the wanted percentile and a little above it
_SAMPLES = 200  # of the bootstrap
_SEED = 0
_ROUNDS = 3  # of dropping what is unstable before only the stable rest may be borrowed
# How far under the floor the mean of a borrower may lie in a bootstrap sample.
_SAMPLE_SLACK = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Solution:
    """A choice, the prices that led to it, and how many borrowings were dropped as unstable."""

    choice: Choice
    prices: Prices
    dropped: int = 0


def solve(problem: Problem) -> Solution:
    """The cheapest choice at the target, its tail and its borrowings checked; deterministic."""
    settings = problem.settings
    goal = tail_goal(problem.tables, problem.rows, settings)
    choice, prices = problem.reach(settings.target_recall, Prices())
    if goal is not None and _p10(problem, choice) < goal:
        choice, prices = _lift_tail(problem, goal)
    return _settle(problem, choice, prices)


def _lift_tail(problem: Problem, goal: float) -> tuple[Choice, Prices]:
    """The choice at the lowest tail price that reaches the goal.

    Where none does without a mean above the target, the one at the highest that keeps to it: what
    lies beyond would buy the tail with a mean that nobody asked for.
    """
    target = problem.settings.target_recall
    assert target is not None

    def at(tail_price: float) -> tuple[Choice, Prices]:
        paid = Prices(tail_recall=tail_price, tail=goal + _TAIL_MARGIN)
        return problem.reach(target, paid)

    def beyond(choice: Choice) -> bool:
        return problem.mean_recall(choice) > target + _OVERSHOOT

    low, high = 0.0, _TAIL_PRICE
    below, above = at(low), at(high)
    while high < _MAX_TAIL_PRICE and _p10(problem, above[0]) < goal and not beyond(above[0]):
        low, high, below = high, 4 * high, above
        above = at(high)
    for _ in range(_TAIL_STEPS):
        middle = (low + high) / 2
        tried = at(middle)
        if _p10(problem, tried[0]) >= goal or beyond(tried[0]):
            high, above = middle, tried
        else:
            low, below = middle, tried
    return below if beyond(above[0]) and not beyond(below[0]) else above


def solve_at(problem: Problem, prices: Prices) -> Solution:
    """The same at a given tail price: for folds and controls, which differ in nothing else."""
    choice, found = _again(problem, prices)
    return _settle(problem, choice, found)


def _again(problem: Problem, prices: Prices) -> tuple[Choice, Prices]:
    return problem.reach(problem.settings.target_recall, prices, hint=prices.recall)


def tail_goal(tables: PlanTables, rows: Rows, settings: PlanSettings) -> float | None:
    """The tenth percentile of recall that is wanted; None where none is."""
    target = settings.target_recall
    if target is None or not settings.tail_gain:
        return None
    found = reference(tables, rows, "vertical_slash", target).recall_p10
    if found is None:
        return None
    # A percentile at the mean itself would take heads that are all alike.
    return min(found + settings.tail_gain, target - _TAIL_MARGIN)


def _p10(problem: Problem, choice: Choice) -> float:
    _, recall = evaluate(problem.tables, problem.rows, choice, problem.settings)
    return float(np.quantile(recall, TAIL))


def _settle(problem: Problem, choice: Choice, prices: Prices) -> Solution:
    """Drop borrowings that are unstable, and choose again without them."""
    dropped = 0
    for _ in range(_ROUNDS):
        borrowers, lenders, _ = edges(choice)
        shaky = ~_stable(problem, choice, prices)
        if not shaky.any():
            return Solution(choice=choice, prices=prices, dropped=dropped)
        problem.forbid(borrowers[shaky], lenders[shaky])
        dropped += int(shaky.sum())
        choice, prices = _again(problem, prices)
    borrowers, lenders, _ = edges(choice)
    stable = _stable(problem, choice, prices)
    dropped += int((~stable).sum())
    problem.keep_only(borrowers[stable], lenders[stable])
    choice, prices = _again(problem, prices)
    return Solution(choice=choice, prices=prices, dropped=dropped)


def _stable(problem: Problem, choice: Choice, prices: Prices) -> np.ndarray:
    """bool [E]: borrowings that pay, and keep the floor, in enough bootstrap samples."""
    tables, rows, settings = problem.tables, problem.rows, problem.settings
    borrowers, lenders, modes = edges(choice)
    if not len(borrowers):
        return np.zeros(0, dtype=bool)
    recall = tables.lent_recall[rows][:, modes, borrowers, lenders].astype(np.float64)
    borrowed = tables.lent_density[rows][:, modes, lenders] + _lost(recall, prices)
    # Against what the head would compute by itself at the same prices.
    alone = choice.option[borrowers]
    own = tables.cost[rows][:, borrowers, alone] + _lost(
        tables.recall[rows][:, borrowers, alone].astype(np.float64), prices
    )
    if settings.guarded:
        borrowed = borrowed + tables.row_estimate[rows][:, None]
    picks = np.random.default_rng(_SEED).integers(0, len(rows), (_SAMPLES, len(rows)))
    weights = np.zeros((_SAMPLES, len(rows)))
    np.add.at(weights, (np.arange(_SAMPLES)[:, None], picks), 1 / len(rows))
    pays = weights @ (own - borrowed) > 0
    holds = weights @ recall >= settings.floor - _SAMPLE_SLACK
    stable: np.ndarray = (pays & holds).mean(0) >= settings.stability
    return stable


def _lost(recall: Matrix, prices: Prices) -> Matrix:
    lost: Matrix = prices.recall * (1 - recall)
    return lost + prices.tail_recall * np.maximum(prices.tail - recall, 0)


def interval(cost: Matrix) -> tuple[float, float]:
    """5 % and 95 % of the mean of [prompts, LH] values over bootstrap samples of the prompts."""
    means = cost.mean(1)
    picks = np.random.default_rng(_SEED).integers(0, len(means), (_SAMPLES, len(means)))
    low, high = np.quantile(means[picks].mean(1), (0.05, 0.95))
    return float(low), float(high)


def halves_of(tables: PlanTables) -> tuple[Rows, Rows] | None:
    """Two halves of the prompts, alike in their tasks; None if some task has a single prompt."""
    half = split_halves(tables.prompts)
    if half is None:
        return None
    sides = np.array([half[prompt.sha256] for prompt in tables.prompts])
    return np.flatnonzero(sides == 0), np.flatnonzero(sides == 1)


def held_out(tables: PlanTables, settings: PlanSettings, prices: Prices) -> Outcome | None:
    """Chosen on one half of the prompts and measured on the other, both ways."""
    halves = halves_of(tables)
    if halves is None:
        return None
    return outcome_of(*folds(tables, settings, prices, [halves, halves[::-1]]))


def folds(
    tables: PlanTables,
    settings: PlanSettings,
    prices: Prices,
    pairs: list[tuple[Rows, Rows]],
) -> tuple[Matrix, Matrix]:
    """Cost and recall, [prompts, LH], of choices made on the first and measured on the second."""
    parts = []
    for chosen, tested in pairs:
        solution = solve_at(Problem(tables, chosen, settings), prices)
        parts.append(evaluate(tables, tested, solution.choice, settings))
    return np.concatenate([c for c, _ in parts]), np.concatenate([r for _, r in parts])


def left_out(
    tables: PlanTables, settings: PlanSettings, prices: Prices
) -> tuple[NamedOutcome, ...]:
    """Leave-one-task-out: chosen without a task, measured on it; () where there is one task."""
    everyone, found = tables.everyone, []
    for task in tables.tasks if len(tables.tasks) > 1 else ():
        tested = tables.of_task(everyone, task)
        chosen = np.setdiff1d(everyone, tested)
        outcome = outcome_of(*folds(tables, settings, prices, [(chosen, tested)]))
        found.append(NamedOutcome(name=task or "own prompts", outcome=outcome))
    return tuple(found)


def reference(tables: PlanTables, rows: Rows, method: str, target: float) -> Reference:
    """A method with one setting for all heads, between its settings, at a mean recall.

    method: an assignment, "sampled, stride S" or "oracle" (each head's own exact mask, whose
    estimate is not counted).
    """
    cost, recall = _curve(tables, rows, method)
    if not cost.shape[-1]:
        return Reference(method=method, cost=None, recall_p10=None)
    means = recall.mean((0, 1))
    if means.max() < target:
        return Reference(method=method, cost=None, recall_p10=None)
    tails = np.quantile(recall, TAIL, axis=(0, 1))
    order = np.argsort(means, kind="stable")
    return Reference(
        method=method,
        cost=cost_at_recall(cost.mean((0, 1)), means, target),
        recall_p10=float(np.interp(target, means[order], tails[order])),
    )


def reference_names(tables: PlanTables) -> tuple[str, ...]:
    """What `reference` knows of these tables."""
    strides = sorted({one.stride for one in tables.candidates if one.stride is not None})
    return (
        *(name for name in ("vertical_slash", "query_aware", *PEERS) if tables.columns(name)),
        *(f"sampled, stride {stride}" for stride in strides),
        "oracle",
    )


def _curve(tables: PlanTables, rows: Rows, method: str) -> tuple[np.ndarray, np.ndarray]:
    """float64 [rows, LH, settings] each, cost and recall."""
    if method == "oracle":
        cost, recall = tables.oracle_cost[rows], tables.oracle_recall[rows]
        return cost.astype(np.float64), recall.astype(np.float64)
    name, _, stride = method.partition(", stride ")
    columns = tables.columns(name)
    if stride:
        columns = [k for k in columns if tables.candidates[k].stride == int(stride)]
    return (
        tables.cost[rows][..., columns].astype(np.float64),
        tables.recall[rows][..., columns].astype(np.float64),
    )
