"""Plans of random measurements: valid, never dearer for lending, deaf to the order of prompts."""

from __future__ import annotations

import dataclasses
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_profile.plan_choice import Prices, Problem, evaluate
from sp_profile.plan_kinds import FREE, KindPrices
from sp_profile.plan_solver import solve
from sp_profile.plan_types import PlanSettings
from sp_profile.planning import make_plan

SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=25, deadline=None)
@given(
    seed=SEEDS,
    target=st.sampled_from([None, 0.85, 0.93, 0.97]),
    guarded=st.booleans(),
    same_layer=st.booleans(),
    prices=st.sampled_from([FREE, KindPrices(), KindPrices(sampled=2.0)]),
)
def test_every_plan_is_valid_and_keeps_target_and_floors(
    plans: ModuleType,
    seed: int,
    target: float | None,
    guarded: bool,
    same_layer: bool,
    prices: KindPrices,
):
    tables = plans.random_tables(seed)
    options = PlanSettings(
        target_recall=target,
        recall_floor=0.8,
        guarded=guarded,
        same_layer=same_layer,
        kind_prices=prices,
    )
    planned = make_plan(tables, options, thorough=False)
    plan, summary = planned.plan, planned.summary
    by_ref = {head.ref: head for head in plan.heads}
    assert [head.layer for head in plan.heads] == tables.layers.tolist()
    assert len(by_ref) == len(tables.layers)
    lenders = set()
    for head in plan.heads:
        assert head.recall >= 0.8 - 1e-6
        assert (head.lender is not None) == (head.assignment == "borrow")
        if head.lender is not None:
            lender = by_ref[head.lender]
            assert lender.assignment in ("dense", "sampled")
            allowed = head.layer + (same_layer and lender.assignment == "sampled")
            assert lender.layer < allowed
            assert head.gamma == lender.gamma
            lenders.add(head.lender)
    if target is not None:
        assert summary.recall >= target - 1e-6
    assert summary.lenders == len(lenders)
    assert sum(count for _, count in summary.counts) == len(plan.heads)
    assert summary.cost == pytest.approx(np.mean([head.cost for head in plan.heads]))
    assert summary.held_out is not None
    assert summary.held_out.prompts == len(tables.prompts)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, price=st.floats(0, 20))
def test_lending_never_raises_the_price(plans: ModuleType, seed: int, price: float):
    tables = plans.random_tables(seed)
    lending = PlanSettings(target_recall=0.9, recall_floor=0.8, kind_prices=FREE)
    totals = []
    for options in (lending, dataclasses.replace(lending, lending=False)):
        problem = Problem(tables, tables.everyone, options)
        choice = problem.choose(Prices(recall=price, tail=1.0))
        cost, recall = evaluate(tables, tables.everyone, choice, options)
        totals.append(float((cost + price * (1 - recall) + (recall < problem.tail)).mean()))
    assert totals[0] <= totals[1] + 1e-4


@settings(max_examples=8, deadline=None)
@given(seed=SEEDS, target=st.sampled_from([None, 0.93]))
def test_the_order_of_the_prompts_changes_nothing(
    plans: ModuleType, seed: int, target: float | None
):
    tables = plans.random_tables(seed)
    options = PlanSettings(target_recall=target, recall_floor=0.8, kind_prices=FREE)
    one = make_plan(tables, options).plan
    two = make_plan(plans.shuffled(tables, seed), options).plan
    same = [dataclasses.replace(head, recall=0.0, cost=0.0) for head in one.heads]
    assert same == [dataclasses.replace(head, recall=0.0, cost=0.0) for head in two.heads]
    assert one == make_plan(tables, options).plan


def test_a_solution_is_at_the_lowest_price_that_reaches_the_target(plans: ModuleType):
    tables = plans.random_tables(7)
    options = PlanSettings(
        target_recall=0.93, recall_floor=0.7, tail_gain=0.0, stability=0.0, kind_prices=FREE
    )
    problem = Problem(tables, tables.everyone, options)
    found = solve(problem)
    assert problem.mean_recall(found.choice) >= 0.93 - 1e-9
    less = dataclasses.replace(found.prices, recall=found.prices.recall * 0.95)
    assert problem.mean_recall(problem.choose(less)) < 0.93 or found.prices.recall == 0
