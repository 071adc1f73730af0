"""The per-head plan: validity on random measurements, optimality on small ones, checks."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_profile.candidates import Candidate
from sp_profile.measure import split_halves
from sp_profile.plan_choice import Prices, Problem, evaluate
from sp_profile.plan_data import Lending, PlanTables
from sp_profile.plan_kinds import FREE, KindPrices
from sp_profile.plan_reference import reference
from sp_profile.plan_search import LendingMode, search
from sp_profile.plan_solver import solve
from sp_profile.plan_types import PlanSettings
from sp_profile.planning import ceiling_share, make_plan
from sp_runtime.errors import UsageError
from sp_runtime.profile import HeadRef, PromptRecord

CANDIDATES = (
    Candidate(assignment="vertical_slash", gamma=0.8),
    Candidate(assignment="vertical_slash", gamma=0.95),
    Candidate(assignment="streaming", window=256),
    Candidate(assignment="sampled", gamma=0.9, stride=8),
    Candidate(assignment="sampled", gamma=0.95, stride=16),
)
LENDING = (
    Lending(gamma=0.9, column=None),
    Lending(gamma=0.9, column=3),
    Lending(gamma=0.95, column=4),
)
FLOOR = PlanSettings(target_recall=None, recall_floor=0.9, kind_prices=FREE)
SEEDS = st.integers(0, 2**32 - 1)


def make_prompts(count: int, tasks: int = 2) -> tuple[PromptRecord, ...]:
    names = sorted(hashlib.sha256(str(n).encode()).hexdigest() for n in range(count))
    return tuple(
        PromptRecord(sha256=name, tokens=1024, task=f"task{n % tasks}")
        for n, name in enumerate(names)
    )


def make_tables(
    layers: list[int], *, prompts: int = 4, tasks: int = 2, **changes: object
) -> PlanTables:
    """All recalls 0.95, own vertical-slash 0.5, sampled 0.4, masks of density 0.1."""
    heads, count = len(layers), len(CANDIDATES)
    later = np.array(layers)[None, :] > np.array(layers)[:, None]
    lent = np.full((prompts, len(LENDING), heads, heads), 0.95, dtype=np.float16)
    lent[..., later] = -1
    dense = np.ones((prompts, heads, 1), dtype=np.float32)
    cost = np.tile(np.array([0.5, 0.6, 0.7, 0.4, 0.45], dtype=np.float32), (prompts, heads, 1))
    tables = PlanTables(
        layers=np.array(layers, dtype=np.int32),
        numbers=np.array(
            [layers[:n].count(layer) for n, layer in enumerate(layers)], dtype=np.int32
        ),
        candidates=CANDIDATES,
        lending=LENDING,
        oracle_gammas=(0.8, 0.95),
        prompts=make_prompts(prompts, tasks),
        cost=np.concatenate([cost, dense], 2),
        recall=np.concatenate([np.full((prompts, heads, count), 0.95, np.float32), dense], 2),
        lent_recall=lent,
        lent_density=np.full((prompts, len(LENDING), heads), 0.1, dtype=np.float32),
        oracle_cost=np.tile(np.array([0.1, 0.3], dtype=np.float32), (prompts, heads, 1)),
        oracle_recall=np.tile(np.array([0.85, 0.97], dtype=np.float32), (prompts, heads, 1)),
        row_estimate=np.full(prompts, 0.01),
    )
    return dataclasses.replace(tables, **changes)


def random_tables(seed: int, *, prompts: int = 6) -> PlanTables:
    """Up to 12 heads in up to four layers; dearer candidates keep more, as they do in life."""
    rng = np.random.default_rng(seed)
    layers = sorted(rng.integers(0, 4, rng.integers(1, 13)).tolist())
    tables = make_tables(layers, prompts=prompts)
    heads = len(layers)
    cost = rng.uniform(0.1, 0.9, (1, heads, len(CANDIDATES)))
    noise = rng.normal(0, 0.02, (prompts, heads, len(CANDIDATES)))
    recall = np.clip(0.75 + 0.25 * cost + noise, 0, 1)
    lent = np.clip(
        rng.uniform(0.7, 1, tables.lent_recall.shape[1:])
        + rng.normal(0, 0.01, tables.lent_recall.shape),
        0,
        1,
    )
    lent[tables.lent_recall < 0] = -1
    tables.cost[..., :-1], tables.recall[..., :-1] = cost, recall
    return dataclasses.replace(
        tables,
        lent_recall=lent.astype(np.float16),
        lent_density=np.broadcast_to(
            rng.uniform(0.05, 0.5, (1, *tables.lent_density.shape[1:])), tables.lent_density.shape
        ).astype(np.float32),
    )


def shuffled(tables: PlanTables, seed: int) -> PlanTables:
    """The same prompts in another order."""
    order = np.random.default_rng(seed).permutation(len(tables.prompts))
    fields = ("cost", "recall", "lent_recall", "lent_density", "oracle_cost", "oracle_recall")
    return dataclasses.replace(
        tables,
        prompts=tuple(tables.prompts[n] for n in order),
        row_estimate=tables.row_estimate[order],
        **{name: getattr(tables, name)[order] for name in fields},
    )


@settings(max_examples=25, deadline=None)
@given(
    seed=SEEDS,
    target=st.sampled_from([None, 0.85, 0.93, 0.97]),
    guarded=st.booleans(),
    same_layer=st.booleans(),
    prices=st.sampled_from([FREE, KindPrices(), KindPrices(sampled=2.0)]),
)
def test_every_plan_is_valid_and_keeps_target_and_floors(
    seed: int, target: float | None, guarded: bool, same_layer: bool, prices: KindPrices
):
    tables = random_tables(seed)
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
def test_lending_never_raises_the_price(seed: int, price: float):
    tables = random_tables(seed)
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
def test_the_order_of_the_prompts_changes_nothing(seed: int, target: float | None):
    tables = random_tables(seed)
    options = PlanSettings(target_recall=target, recall_floor=0.8, kind_prices=FREE)
    one = make_plan(tables, options).plan
    two = make_plan(shuffled(tables, seed), options).plan
    same = [dataclasses.replace(head, recall=0.0, cost=0.0) for head in one.heads]
    assert same == [dataclasses.replace(head, recall=0.0, cost=0.0) for head in two.heads]
    assert one == make_plan(tables, options).plan


def small_problem(seed: int) -> tuple[np.ndarray, LendingMode]:
    """Six heads in up to three layers with random costs and permissions."""
    rng = np.random.default_rng(seed)
    layers = np.sort(rng.integers(0, 3, 6))
    own = rng.uniform(0.3, 1.0, 6)
    allowed = (layers[None] < layers[:, None]) & (rng.random((6, 6)) < 0.7)
    price = np.where(allowed, rng.uniform(0.05, 0.4, (6, 6)), np.inf)
    return own, LendingMode(opening=own + rng.uniform(0, 0.5, 6), price=price)


def optimum(own: np.ndarray, mode: LendingMode) -> float:
    """The least total over all sets of lenders."""
    best = np.inf
    for lenders in itertools.product([False, True], repeat=len(own)):
        opened = np.array(lenders)
        cheapest = np.where(opened[None], mode.price, np.inf).min(1)
        best = min(best, np.where(opened, mode.opening, np.minimum(own, cheapest)).sum())
    return float(best)


def test_the_search_finds_the_optimum_nearly_always():
    gaps = []
    for seed in range(100):
        own, mode = small_problem(seed)
        found = search(own, (mode,)).cost.sum()
        assert found <= own.sum() + 1e-9
        gaps.append((found - optimum(own, mode)) / own.sum())
    assert min(gaps) >= -1e-9
    assert np.mean(np.array(gaps) > 1e-5) <= 0.06
    assert np.mean(gaps) <= 0.005


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_an_assignment_adds_up(seed: int):
    own, mode = small_problem(seed)
    found = search(own, (mode,))
    for head, cost in enumerate(found.cost):
        lender = found.lender[head]
        if lender >= 0:
            assert found.mode[head] == -1
            assert found.mode[lender] == 0
            assert cost == mode.price[head, lender] < own[head]
        else:
            assert cost == (mode.opening[head] if found.mode[head] == 0 else own[head])
    # A lender that lends to nobody would only cost.
    assert set(np.flatnonzero(found.mode == 0)) == set(found.lender[found.lender >= 0])


def test_borrowers_outweigh_a_dearer_lender():
    tables = make_tables([0, 1, 1, 1, 1])
    tables.cost[:, 0, :5] = [0.2, 0.6, 0.7, 0.7, 0.75]  # alone, head 0 would take vertical-slash
    planned = make_plan(tables, dataclasses.replace(FLOOR, same_layer=False))
    assert [head.assignment for head in planned.plan.heads] == ["sampled", *["borrow"] * 4]
    assert {head.lender for head in planned.plan.heads[1:]} == {HeadRef(0, 0)}
    assert planned.summary.cost == pytest.approx((0.7 + 4 * 0.1) / 5)
    assert planned.summary.vertical_slash_cost == pytest.approx((0.2 + 4 * 0.5) / 5)


def test_one_borrower_does_not():
    tables = make_tables([0, 1])
    tables.cost[..., 3:5] = 0.95
    planned = make_plan(tables, FLOOR)
    assert [head.assignment for head in planned.plan.heads] == ["vertical_slash"] * 2
    assert planned.summary.lenders == 0


@pytest.mark.parametrize(("same_layer", "borrowers"), [(True, 3), (False, 0)])
def test_a_sampled_head_lends_within_its_layer(same_layer: bool, borrowers: int):
    options = dataclasses.replace(FLOOR, same_layer=same_layer)
    plan = make_plan(make_tables([0, 0, 0, 0]), options).plan
    assert sum(head.assignment == "borrow" for head in plan.heads) == borrowers


def test_a_dense_lender_pays_for_its_mass_and_the_guard_for_its_estimates():
    tables = make_tables([0, 1, 1, 1, 2, 2], row_estimate=np.full(4, 0.03))
    tables.recall[..., :-1] = 0
    plan = make_plan(tables, dataclasses.replace(FLOOR, guarded=True)).plan
    assert [head.assignment for head in plan.heads] == ["dense", *["borrow"] * 5]
    assert plan.heads[0].cost == pytest.approx(1.53)
    assert plan.heads[0].gamma == 0.9
    assert plan.heads[1].cost == pytest.approx(0.13)


def test_a_head_that_nothing_fits_is_dense():
    tables = make_tables([0])
    tables.recall[..., :-1] = 0
    (head,) = make_plan(tables, FLOOR).plan.heads
    assert (head.assignment, head.gamma, head.cost, head.recall) == ("dense", 1.0, 1.0, 1.0)


def test_the_worst_task_bars_an_assignment():
    tables = make_tables([0])
    (row,) = tables.of_task(tables.everyone, "task1")[:1]
    tables.recall[row, 0, 3:5] = 0.66  # the mean of its two prompts is under 0.9 - 0.05
    tables.recall[:, 0, 3:5] += 0.04  # and that of all of them over 0.9
    assert tables.recall[:, 0, 3].mean() > 0.9
    plan = make_plan(tables, FLOOR).plan
    assert plan.heads[0].assignment == "vertical_slash"


def test_a_borrowing_that_single_prompts_carry_is_dropped():
    tables = make_tables([0, 1, 1, 2, 2], prompts=8)
    # Head 1 keeps the floor on average only thanks to half of its prompts, of either task.
    tables.lent_recall[:, :, 1, 0] = np.array([1.0, 1.0, 0.805, 0.805] * 2)[:, None]
    free = dataclasses.replace(FLOOR, stability=0.0)
    kept, strict = make_plan(tables, free), make_plan(tables, FLOOR)
    assert kept.plan.heads[1].lender == HeadRef(0, 0)
    assert strict.plan.heads[1].lender != HeadRef(0, 0)
    assert (kept.summary.dropped, strict.summary.dropped) == (0, 1)
    assert any("1 borrowings dropped" in note for note in strict.summary.notes)


def test_a_tail_is_lifted_at_the_same_mean():
    rng = np.random.default_rng(3)
    tables = make_tables([0] * 60, prompts=4)
    cost = np.sort(rng.uniform(0.1, 0.6, (60, 5)), 1)[:, [0, 4, 1, 2, 3]]
    tables.cost[..., :-1] = cost
    # The same blocks win more in some heads than in others, so the mean alone starves some.
    tables.recall[..., :-1] = 1 - rng.uniform(0.02, 0.3, (60, 1)) * (0.7 - cost)
    options = PlanSettings(target_recall=0.95, recall_floor=0.5, lending=False, kind_prices=FREE)
    plain = make_plan(tables, dataclasses.replace(options, tail_gain=0.0)).summary
    lifted = make_plan(tables, dataclasses.replace(options, tail_gain=0.2)).summary
    assert plain.recall == pytest.approx(lifted.recall, abs=0.003)
    assert lifted.recall_p10 > plain.recall_p10
    assert lifted.cost > plain.cost
    assert lifted.tail_price > plain.tail_price == 0


def test_without_halves_the_summary_says_so():
    summary = make_plan(make_tables([0, 1], prompts=2), FLOOR).summary
    assert summary.held_out is None
    assert "not held out" in summary.notes[0]


def test_no_sampled_lender_without_its_measurement():
    tables = make_tables([0, 1, 1, 2])
    tables = dataclasses.replace(
        tables,
        lending=LENDING[:1],
        lent_recall=tables.lent_recall[:, :1],
        lent_density=tables.lent_density[:, :1],
    )
    planned = make_plan(tables, FLOOR)
    assert all(head.assignment == "sampled" for head in planned.plan.heads)
    assert any("no sampled lender" in note for note in planned.summary.notes)


def test_references_lie_between_their_settings_and_the_share_of_the_ceiling():
    tables = make_tables([0, 1])
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


def test_a_solution_is_at_the_lowest_price_that_reaches_the_target():
    tables = random_tables(7)
    options = PlanSettings(
        target_recall=0.93, recall_floor=0.7, tail_gain=0.0, stability=0.0, kind_prices=FREE
    )
    problem = Problem(tables, tables.everyone, options)
    found = solve(problem)
    assert problem.mean_recall(found.choice) >= 0.93 - 1e-9
    less = dataclasses.replace(found.prices, recall=found.prices.recall * 0.95)
    assert problem.mean_recall(problem.choose(less)) < 0.93 or found.prices.recall == 0


def test_peers_are_measured_and_never_assigned():
    """A peer that is cheaper and keeps more than everything else is a reference alone."""
    tables = make_tables([0, 0, 1, 1])
    peer = np.full((*tables.cost.shape[:2], 1), 0.01, dtype=np.float32)
    with_peer = dataclasses.replace(
        tables,
        candidates=(*CANDIDATES, Candidate(assignment="xattention", gamma=0.9)),
        cost=np.concatenate([tables.cost[..., :-1], peer, tables.cost[..., -1:]], 2),
        recall=np.concatenate([tables.recall[..., :-1], 99 * peer, tables.recall[..., -1:]], 2),
    )
    planned, plain = make_plan(with_peer, PlanSettings()), make_plan(tables, PlanSettings())
    assert [head.assignment for head in planned.plan.heads] == [
        head.assignment for head in plain.plan.heads
    ]
    assert planned.reference("xattention") is not None
    assert plain.reference("xattention") is None
