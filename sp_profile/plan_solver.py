"""From prices to a plan: the tail, what is unstable, and how the choice does on other prompts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sp_profile.measure import split_halves
from sp_profile.plan_choice import (
    Choice,
    Matrix,
    Prices,
    Problem,
    edges,
    evaluate,
    outcome_of,
    under,
)
from sp_profile.plan_data import PlanTables, Rows
from sp_profile.plan_types import NamedOutcome, Outcome, PlanSettings

_TAIL_PRICE, _MAX_TAIL_PRICE = 0.125, 8.0
_TAIL_STEPS = 3
_OVERSHOOT = 0.001
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
    choice, prices = problem.reach(problem.settings.target_recall, Prices())
    if problem.goal and problem.tail_gap(choice) < 0:
        choice, prices = _lift_tail(problem, (choice, prices))
    return _settle(problem, choice, prices)


def _lift_tail(problem: Problem, start: tuple[Choice, Prices]) -> tuple[Choice, Prices]:
    """The choice at the lowest tail price that reaches the goal.

    Where none does without a mean above the target, the one that comes nearest and keeps to it:
    what lies beyond would buy the tail with a mean that nobody asked for.
    """
    target = problem.settings.target_recall
    assert target is not None
    nearest, gap = start, problem.tail_gap(start[0])
    low, high = 0.0, _TAIL_PRICE
    reached: tuple[Choice, Prices] | None = None

    def lies_high_enough(price: float) -> bool:
        """Whether to look at lower prices: the goal is reached, or the mean is beyond."""
        nonlocal nearest, gap, reached
        tried = problem.reach(target, Prices(tail=price), hint=nearest[1].recall)
        found = problem.tail_gap(tried[0])
        if problem.mean_recall(tried[0]) > target + _OVERSHOOT:
            return True
        if found >= 0:
            reached = tried
        elif found > gap:
            nearest, gap = tried, found
        return found >= 0

    while not (above := lies_high_enough(high)) and high < _MAX_TAIL_PRICE:
        low, high = high, 2 * high
    for _ in range(_TAIL_STEPS if above else 0):
        middle = (low + high) / 2
        if lies_high_enough(middle):
            high = middle
        else:
            low = middle
    return reached or nearest


def solve_at(problem: Problem, prices: Prices) -> Solution:
    """The same at a given tail price: for folds and controls, which differ in nothing else."""
    choice, found = _again(problem, prices)
    return _settle(problem, choice, found)


def _again(problem: Problem, prices: Prices) -> tuple[Choice, Prices]:
    return problem.reach(problem.settings.target_recall, prices, hint=prices.recall)


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
    borrowed = tables.lent_density[rows][:, modes, lenders] + _lost(recall, prices, problem.tail)
    # Against what the head would compute by itself at the same prices.
    alone = choice.option[borrowers]
    own = tables.cost[rows][:, borrowers, alone] + _lost(
        tables.recall[rows][:, borrowers, alone].astype(np.float64), prices, problem.tail
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


def _lost(recall: Matrix, prices: Prices, tail: float) -> Matrix:
    lost: Matrix = prices.recall * (1 - recall)
    return lost + prices.tail * under(recall, tail)


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
