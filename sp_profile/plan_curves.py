"""Curves of plans at one length: with lending, without it, and of the best lenders alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from sp_profile.plan_choice import Matrix, Problem, evaluate
from sp_profile.plan_data import PlanTables
from sp_profile.plan_solver import folds, halves_of, solve
from sp_profile.plan_types import TARGETS, PlanSettings

PLAN, MIXTURE, BEST_LENDER = "plan", "mixture, no lending", "best lender"


def planned_curves(
    tables: PlanTables,
) -> Iterator[tuple[str, str, npt.NDArray[np.float64], npt.NDArray[np.float64]]]:
    """(method, setting, cost, recall), float64 [prompts, LH] each.

    Chosen on one half of the prompts and measured on the other, both ways; on all of them where
    some task has a single one.
    """
    for target in TARGETS:
        for method, lending in ((PLAN, True), (MIXTURE, False)):
            settings = PlanSettings(target_recall=target, lending=lending)
            yield method, f"target={target:g}", *_folded(tables, settings)
    for number, lent in enumerate(tables.lending):
        kind = "exact" if lent.column is None else f"stride {tables.candidates[lent.column].stride}"
        setting = f"gamma={lent.gamma:g}"
        yield f"{BEST_LENDER}, {kind}", setting, *_best_lender(tables, number)


def _folded(tables: PlanTables, settings: PlanSettings) -> tuple[Matrix, Matrix]:
    solution = solve(Problem(tables, tables.everyone, settings))
    halves = halves_of(tables)
    if halves is None:
        return evaluate(tables, tables.everyone, solution.choice, settings)
    return folds(tables, settings, solution.prices, [halves, halves[::-1]])


def _best_lender(tables: PlanTables, mode: int) -> tuple[Matrix, Matrix]:
    """Every head under the mask, of a head of an earlier layer, that keeps most of its mass on
    average, at that mask's density; heads of the first layer are dense. A ceiling of borrowing:
    nobody computes the masks."""
    layers = tables.layers
    earlier = layers[None, :] < layers[:, None]
    mean = np.where(earlier, tables.lent_recall[:, mode].mean(0, dtype=np.float64), -1.0)
    best = mean.argmax(1)
    alone = ~earlier.any(1)
    heads = np.arange(len(layers))
    cost = tables.lent_density[:, mode][:, best].astype(np.float64)
    recall = tables.lent_recall[:, mode][:, heads, best].astype(np.float64)
    cost[:, alone] = recall[:, alone] = 1.0
    return cost, recall
