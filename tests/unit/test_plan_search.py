"""The search for lenders: near the optimum of small problems, and its sums."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_profile.plan_search import LendingMode, search

SEEDS = st.integers(0, 2**32 - 1)


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
