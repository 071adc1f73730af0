"""The per-head plan: validity on random measurements, optimality on small ones, checks."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_profile.candidates import Candidate
from sp_profile.plan_search import LendingMode, search
from sp_profile.planning import PlanData, PlanMeasurements, PlanSettings, make_plan
from sp_runtime.profile import HeadRef

CANDIDATES = (
    Candidate(assignment="vertical_slash", gamma=0.8),
    Candidate(assignment="vertical_slash", gamma=0.95),
    Candidate(assignment="streaming", window=256),
    Candidate(assignment="sampled", gamma=0.9, stride=8),
)
SETTINGS = PlanSettings(recall_floor=0.9, gamma=0.9, sample_stride=8)
SEEDS = st.integers(0, 2**32 - 1)


def random_measurements(heads: int, seed: int, spread: float = 0.05) -> PlanMeasurements:
    rng = np.random.default_rng(seed)
    candidates = len(CANDIDATES)

    def recalls(*shape: int) -> np.ndarray:
        return rng.uniform(0.8, 1.0, shape)

    candidate, exact, sampled = recalls(heads, candidates), recalls(heads, heads), None
    sampled = recalls(heads, heads)
    return PlanMeasurements(
        prompts=4,
        candidate_cost=rng.uniform(0.1, 1.2, (heads, candidates)),
        candidate_recall=candidate,
        worst_candidate_recall=candidate - rng.uniform(0, spread, candidate.shape),
        recall_exact=exact,
        worst_recall_exact=exact - rng.uniform(0, 2 * spread, exact.shape),
        recall_sampled=sampled,
        worst_recall_sampled=sampled - rng.uniform(0, 2 * spread, sampled.shape),
        density=rng.uniform(0.05, 0.3, heads),
        sampled_density=rng.uniform(0.05, 0.3, heads),
        row_estimate=0.01,
    )


def make_data(
    layers: list[int], measured: PlanMeasurements, **halves: PlanMeasurements
) -> PlanData:
    numbers = [layers[:place].count(layer) for place, layer in enumerate(layers)]
    return PlanData(
        layers=np.array(layers, dtype=np.int32),
        numbers=np.array(numbers, dtype=np.int32),
        candidates=CANDIDATES,
        everything=measured,
        **halves,
    )


def uniform_measurements(heads: int, **changes: object) -> PlanMeasurements:
    """All recalls 0.95, own vertical-slash 0.5, sampled 0.4, masks of density 0.1."""
    square = np.full((heads, heads), 0.95)
    candidate_recall = np.full((heads, len(CANDIDATES)), 0.95)
    base = PlanMeasurements(
        prompts=2,
        candidate_cost=np.tile([0.5, 0.6, 0.7, 0.4], (heads, 1)),
        candidate_recall=candidate_recall,
        worst_candidate_recall=candidate_recall,
        recall_exact=square,
        worst_recall_exact=square,
        recall_sampled=square,
        worst_recall_sampled=square,
        density=np.full(heads, 0.1),
        sampled_density=np.full(heads, 0.1),
        row_estimate=0.01,
    )
    return dataclasses.replace(base, **changes)


@settings(max_examples=60, deadline=None)
@given(heads=st.integers(1, 16), seed=SEEDS, guarded=st.booleans(), halves=st.booleans())
def test_every_plan_is_valid_and_keeps_the_floor(
    heads: int, seed: int, guarded: bool, halves: bool
):
    layers = sorted(np.random.default_rng(seed).integers(0, 4, heads).tolist())
    measured = random_measurements(heads, seed)
    parts = {}
    if halves:
        parts = {"chosen": measured, "held_out": random_measurements(heads, seed + 1)}
    options = dataclasses.replace(SETTINGS, guarded=guarded)
    plan, summary = make_plan(make_data(layers, measured, **parts), options)
    by_ref = {head.ref: (place, head) for place, head in enumerate(plan.heads)}
    assert [head.layer for head in plan.heads] == layers
    assert len(by_ref) == heads
    lenders = set()
    for place, head in enumerate(plan.heads):
        assert head.recall >= SETTINGS.recall_floor
        assert (head.lender is not None) == (head.assignment == "borrow")
        if head.lender is not None:
            number, lender = by_ref[head.lender]
            assert lender.layer < head.layer
            assert lender.assignment in ("dense", "sampled")
            assert lender.gamma == SETTINGS.gamma
            assert lender.stride in (None, SETTINGS.sample_stride)
            sampled = lender.assignment == "sampled"
            worst = measured.worst_recall_sampled if sampled else measured.worst_recall_exact
            assert worst[place, number] >= SETTINGS.recall_floor - SETTINGS.task_slack
            if halves:
                held = parts["held_out"]
                table = held.recall_sampled if sampled else held.recall_exact
                assert table[place, number] >= SETTINGS.recall_floor - SETTINGS.held_out_slack
            lenders.add(head.lender)
    assert summary.lenders == len(lenders)
    assert sum(count for _, count in summary.counts) == heads
    assert summary.cost == pytest.approx(np.mean([head.cost for head in plan.heads]))
    # Borrowing is only ever taken where it saves, so the plan never costs more than the best
    # own choice, of which vertical-slash alone is a part.
    assert summary.cost <= summary.vertical_slash_cost + 1e-9


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
    measured = uniform_measurements(5)
    cost = measured.candidate_cost.copy()
    cost[0] = [0.2, 0.6, 0.7, 0.7]  # alone, head 0 would take vertical-slash
    plan, summary = make_plan(
        make_data([0, 1, 1, 2, 3], dataclasses.replace(measured, candidate_cost=cost)), SETTINGS
    )
    assert [head.assignment for head in plan.heads] == ["sampled", *["borrow"] * 4]
    assert {head.lender for head in plan.heads[1:]} == {HeadRef(0, 0)}
    assert summary.cost == pytest.approx((0.7 + 4 * 0.1) / 5)
    assert summary.vertical_slash_cost == pytest.approx((0.2 + 4 * 0.5) / 5)


def test_one_borrower_does_not():
    measured = uniform_measurements(2)
    cost = measured.candidate_cost.copy()
    cost[:, 3] = 0.95
    plan, summary = make_plan(
        make_data([0, 1], dataclasses.replace(measured, candidate_cost=cost)), SETTINGS
    )
    assert [head.assignment for head in plan.heads] == ["vertical_slash"] * 2
    assert summary.lenders == 0


def test_a_dense_lender_pays_for_its_mass_and_the_guard_for_its_estimates():
    nothing = np.zeros((6, len(CANDIDATES)))
    measured = uniform_measurements(
        6, candidate_recall=nothing, worst_candidate_recall=nothing, row_estimate=0.03
    )
    plan, _ = make_plan(
        make_data([0, 1, 1, 1, 2, 2], measured), dataclasses.replace(SETTINGS, guarded=True)
    )
    assert [head.assignment for head in plan.heads] == ["dense", *["borrow"] * 5]
    assert plan.heads[0].cost == pytest.approx(1.53)
    assert plan.heads[0].gamma == SETTINGS.gamma
    assert plan.heads[1].cost == pytest.approx(0.13)


def test_a_head_that_nothing_fits_is_dense():
    nothing = np.zeros((1, len(CANDIDATES)))
    measured = uniform_measurements(1, candidate_recall=nothing)
    plan, _ = make_plan(make_data([0], measured), SETTINGS)
    (head,) = plan.heads
    assert (head.assignment, head.gamma, head.cost, head.recall) == ("dense", 1.0, 1.0, 1.0)


def test_the_worst_task_bars_an_assignment():
    measured = uniform_measurements(1)
    worst = measured.worst_candidate_recall.copy()
    worst[0, 3] = 0.84  # more than 0.05 under the floor
    plan, _ = make_plan(
        make_data([0], dataclasses.replace(measured, worst_candidate_recall=worst)), SETTINGS
    )
    assert plan.heads[0].assignment == "vertical_slash"


def test_borrowings_that_miss_on_held_out_prompts_are_dropped():
    measured = uniform_measurements(6)
    held = measured.recall_sampled.copy()
    held[3, :] = 0.87  # more than 0.02 under the floor
    held_out = dataclasses.replace(measured, recall_sampled=held)
    plan, summary = make_plan(
        make_data([0, 1, 1, 2, 2, 3], measured, chosen=measured, held_out=held_out), SETTINGS
    )
    assert [head.assignment for head in plan.heads] == [
        *("sampled", "borrow", "borrow", "sampled", "borrow", "borrow")
    ]
    assert summary.dropped == 1
    assert summary.held_out is not None
    assert summary.held_out.misses == 0
    assert any("1 borrowings dropped" in note for note in summary.notes)


def test_without_halves_the_summary_says_so():
    _, summary = make_plan(make_data([0, 1], uniform_measurements(2)), SETTINGS)
    assert summary.held_out is None
    assert summary.notes[0].startswith("chosen on all prompts, unchecked")


def test_no_sampled_lender_without_its_measurement():
    settings_ = dataclasses.replace(SETTINGS, sample_stride=4)
    plan, summary = make_plan(make_data([0, 1, 1, 2], uniform_measurements(4)), settings_)
    assert all(head.assignment == "sampled" for head in plan.heads)
    assert any("no sampled lender" in note for note in summary.notes)
