"""The plan of measurements made by hand: what is chosen, dropped, refused and referred to."""

from __future__ import annotations

import dataclasses
import hashlib
from types import ModuleType

import numpy as np
import pytest

from sp_profile.candidates import Candidate
from sp_profile.measure import split_halves
from sp_profile.plan_kinds import FREE
from sp_profile.plan_reference import reference
from sp_profile.plan_types import PlanSettings
from sp_profile.planning import ceiling_share, make_plan
from sp_runtime.errors import UsageError
from sp_runtime.profile import HeadRef, PromptRecord


def test_borrowers_outweigh_a_dearer_lender(plans: ModuleType):
    tables = plans.make_tables([0, 1, 1, 1, 1])
    tables.cost[:, 0, :5] = [0.2, 0.6, 0.7, 0.7, 0.75]  # alone, head 0 would take vertical-slash
    planned = make_plan(tables, dataclasses.replace(plans.FLOOR, same_layer=False))
    assert [head.assignment for head in planned.plan.heads] == ["sampled", *["borrow"] * 4]
    assert {head.lender for head in planned.plan.heads[1:]} == {HeadRef(0, 0)}
    assert planned.summary.cost == pytest.approx((0.7 + 4 * 0.1) / 5)
    assert planned.summary.vertical_slash_cost == pytest.approx((0.2 + 4 * 0.5) / 5)


def test_one_borrower_does_not(plans: ModuleType):
    tables = plans.make_tables([0, 1])
    tables.cost[..., 3:5] = 0.95
    planned = make_plan(tables, plans.FLOOR)
    assert [head.assignment for head in planned.plan.heads] == ["vertical_slash"] * 2
    assert planned.summary.lenders == 0


@pytest.mark.parametrize(("same_layer", "borrowers"), [(True, 3), (False, 0)])
def test_a_sampled_head_lends_within_its_layer(plans: ModuleType, same_layer: bool, borrowers: int):
    options = dataclasses.replace(plans.FLOOR, same_layer=same_layer)
    plan = make_plan(plans.make_tables([0, 0, 0, 0]), options).plan
    assert sum(head.assignment == "borrow" for head in plan.heads) == borrowers


def test_a_dense_lender_pays_for_its_mass_and_the_guard_for_its_estimates(plans: ModuleType):
    tables = plans.make_tables([0, 1, 1, 1, 2, 2], row_estimate=np.full(4, 0.03))
    tables.recall[..., :-1] = 0
    plan = make_plan(tables, dataclasses.replace(plans.FLOOR, guarded=True)).plan
    assert [head.assignment for head in plan.heads] == ["dense", *["borrow"] * 5]
    assert plan.heads[0].cost == pytest.approx(1.53)
    assert plan.heads[0].gamma == 0.9
    assert plan.heads[1].cost == pytest.approx(0.13)


def test_a_head_that_nothing_fits_is_dense(plans: ModuleType):
    tables = plans.make_tables([0])
    tables.recall[..., :-1] = 0
    (head,) = make_plan(tables, plans.FLOOR).plan.heads
    assert (head.assignment, head.gamma, head.cost, head.recall) == ("dense", 1.0, 1.0, 1.0)


def test_the_worst_task_bars_an_assignment(plans: ModuleType):
    tables = plans.make_tables([0])
    (row,) = tables.of_task(tables.everyone, "task1")[:1]
    tables.recall[row, 0, 3:5] = 0.66  # the mean of its two prompts is under 0.9 - 0.05
    tables.recall[:, 0, 3:5] += 0.04  # and that of all of them over 0.9
    assert tables.recall[:, 0, 3].mean() > 0.9
    plan = make_plan(tables, plans.FLOOR).plan
    assert plan.heads[0].assignment == "vertical_slash"


def test_a_head_whose_vertical_slash_collapses_on_one_task_does_not_get_it(plans: ModuleType):
    tables = plans.make_tables([0, 0, 0], prompts=8, tasks=4)
    tables.cost[..., :2], tables.recall[..., :2] = 0.1, 0.99
    tables.recall[tables.of_task(tables.everyone, "task3"), 1, :2] = 0.75
    assert tables.recall[:, 1, 0].mean() > 0.92
    options = PlanSettings(target_recall=0.93, lending=False, kind_prices=FREE)
    plan = make_plan(tables, options, thorough=False).plan
    assigned = [head.assignment for head in plan.heads]
    assert assigned == ["vertical_slash", "sampled", "vertical_slash"]


def test_a_borrowing_that_single_prompts_carry_is_dropped(plans: ModuleType):
    tables = plans.make_tables([0, 1, 1, 2, 2], prompts=8)
    # Head 1 keeps the floor on average only thanks to half of its prompts, of either task.
    tables.lent_recall[:, :, 1, 0] = np.array([1.0, 1.0, 0.805, 0.805] * 2)[:, None]
    free = dataclasses.replace(plans.FLOOR, stability=0.0)
    kept, strict = make_plan(tables, free), make_plan(tables, plans.FLOOR)
    assert kept.plan.heads[1].lender == HeadRef(0, 0)
    assert strict.plan.heads[1].lender != HeadRef(0, 0)
    assert (kept.summary.dropped, strict.summary.dropped) == (0, 1)
    assert any("1 borrowings dropped" in note for note in strict.summary.notes)


def test_a_tail_is_lifted_at_the_same_mean(plans: ModuleType):
    rng = np.random.default_rng(3)
    tables = plans.make_tables([0] * 60, prompts=4)
    cost = np.sort(rng.uniform(0.1, 0.6, (60, 5)), 1)[:, [0, 4, 1, 2, 3]]
    tables.cost[..., :-1] = cost
    # The same blocks win more in some heads than in others, so the mean alone starves some.
    tables.recall[..., :-1] = 1 - rng.uniform(0.02, 0.3, (60, 1)) * (0.7 - cost)
    options = PlanSettings(target_recall=0.95, recall_floor=0.5, lending=False, kind_prices=FREE)
    plain = make_plan(tables, dataclasses.replace(options, tail_gain=0.0)).summary
    lifted = make_plan(tables, dataclasses.replace(options, tail_gain=0.02)).summary
    assert plain.recall == pytest.approx(lifted.recall, abs=0.003)
    assert lifted.recall_p10 > plain.recall_p10
    assert lifted.cost > plain.cost
    assert lifted.tail_price > plain.tail_price == 0


def test_without_halves_the_summary_says_so(plans: ModuleType):
    summary = make_plan(plans.make_tables([0, 1], prompts=2), plans.FLOOR).summary
    assert summary.held_out is None
    assert "not held out" in summary.notes[0]


def test_no_sampled_lender_without_its_measurement(plans: ModuleType):
    tables = plans.make_tables([0, 1, 1, 2])
    tables = dataclasses.replace(
        tables,
        lending=plans.LENDING[:1],
        lent_recall=tables.lent_recall[:, :1],
        lent_density=tables.lent_density[:, :1],
    )
    planned = make_plan(tables, plans.FLOOR)
    assert all(head.assignment == "sampled" for head in planned.plan.heads)
    assert any("no sampled lender" in note for note in planned.summary.notes)


def test_references_lie_between_their_settings_and_the_share_of_the_ceiling(plans: ModuleType):
    tables = plans.make_tables([0, 1])
    tables.recall[..., 0] = 0.9
    found = reference(tables, tables.everyone, "vertical_slash", 0.925)
    assert found.cost == pytest.approx(0.55)
    assert found.recall_p10 == pytest.approx(0.925)
    ceiling = reference(tables, tables.everyone, "oracle", 0.91)
    assert ceiling.cost == pytest.approx(0.2)
    assert reference(tables, tables.everyone, "oracle", 0.98).cost is None
    assert reference(tables, tables.everyone, "query_aware", 0.9).cost is None
    plain = reference(tables, tables.everyone, "vertical_slash", 0.91)
    assert ceiling_share(0.36, (plain, ceiling)) == pytest.approx((0.52 - 0.36) / (0.52 - 0.2))
    assert ceiling_share(0.36, (plain,)) is None


def test_halves_are_alike_in_tasks_and_lengths():
    prompts = [
        PromptRecord(sha256=hashlib.sha256(f"{t}{n}".encode()).hexdigest(), tokens=n, task=t)
        for t in ("a", "b")
        for n in (100, 200, 300, 400)
    ]
    halves = split_halves(prompts)
    assert halves is not None
    for side in (0, 1):
        of_side = [prompt for prompt in prompts if halves[prompt.sha256] == side]
        assert sorted(prompt.task for prompt in of_side) == ["a", "a", "b", "b"]
        assert sum(prompt.tokens <= 200 for prompt in of_side) == 2
    assert split_halves(prompts[:5]) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"target_recall": 1.2},
        {"target_recall": None},
        {"recall_floor": 0.0},
        {"tail_gain": -0.1},
        {"min_length": -1},
        {"without": ("dense",)},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, float]):
    with pytest.raises(UsageError):
        PlanSettings(**changes)


def test_peers_are_measured_and_never_assigned(plans: ModuleType):
    """A peer that is cheaper and keeps more than everything else is a reference alone."""
    tables = plans.make_tables([0, 0, 1, 1])
    peer = np.full((*tables.cost.shape[:2], 1), 0.01, dtype=np.float32)
    with_peer = dataclasses.replace(
        tables,
        candidates=(*plans.CANDIDATES, Candidate(assignment="xattention", gamma=0.9)),
        cost=np.concatenate([tables.cost[..., :-1], peer, tables.cost[..., -1:]], 2),
        recall=np.concatenate([tables.recall[..., :-1], 99 * peer, tables.recall[..., -1:]], 2),
    )
    planned, plain = make_plan(with_peer, PlanSettings()), make_plan(tables, PlanSettings())
    assert [head.assignment for head in planned.plan.heads] == [
        head.assignment for head in plain.plan.heads
    ]
    assert planned.reference("xattention") is not None
    assert plain.reference("xattention") is None
