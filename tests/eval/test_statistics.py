"""Intervals: how often they hold the truth, that they are paired, and that they repeat."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp_profile.eval.statistics import (
    RESAMPLES,
    Bootstrap,
    share_estimate,
)


@pytest.mark.parametrize("kind", ["normal", "skewed"])
def test_the_interval_holds_the_true_mean_about_as_often_as_it_says(kind: str) -> None:
    """Percentile intervals of 25 draws fall a little short of 95 %; far less is a defect."""
    generator = np.random.default_rng(7)
    hits = 0
    for number in range(150):
        values = generator.normal(size=25) if kind == "normal" else generator.exponential(size=25)
        estimate = Bootstrap().stratified_mean([(f"{kind}{number}", values)])
        hits += estimate.low <= (0.0 if kind == "normal" else 1.0) <= estimate.high
    assert 0.86 <= hits / 150 <= 0.98


def test_strata_count_the_same_and_shrink_the_interval() -> None:
    generator = np.random.default_rng(1)
    strata = [(str(n), generator.normal(loc=n, size=20 + n)) for n in range(9)]
    together = Bootstrap().stratified_mean(strata)
    assert together.mean == pytest.approx(np.mean([values.mean() for _, values in strata]))
    alone = Bootstrap().stratified_mean(strata[:1])
    assert together.high - together.low < (alone.high - alone.low) / 2


def test_columns_see_the_same_draws() -> None:
    """So a constant difference has no spread, however much the columns vary."""
    scores = np.random.default_rng(2).random((25, 1))
    means = Bootstrap().means(np.hstack([scores, scores + 0.25]), "pair")
    assert means.shape == (RESAMPLES, 2)
    assert np.ptp(means[:, 0]) > 0.05
    assert means[:, 1] - means[:, 0] == pytest.approx(0.25)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40), st.text(max_size=8))
def test_estimates_repeat_and_lie_within_the_values(values: list[float], name: str) -> None:
    array = np.array(values)
    first, second = (Bootstrap().stratified_mean([(name, array)]) for _ in range(2))
    assert first == second
    assert array.min() - 1e-9 <= first.low <= first.high <= array.max() + 1e-9


@given(st.integers(1, 200), st.data())
def test_shares_have_an_interval_that_holds_them(count: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, count))
    estimate = share_estimate(hits, count)
    assert -1e-9 <= estimate.low <= estimate.mean <= estimate.high <= 1 + 1e-9
    assert estimate.high - estimate.low > 0


def test_wilson_as_published() -> None:
    """Newcombe 1998, table I, method 3: 81 of 263."""
    estimate = share_estimate(81, 263)
    assert (round(estimate.low, 4), round(estimate.high, 4)) == (0.2553, 0.3662)


def test_right_or_wrong_scores_take_wilson_and_others_the_bootstrap() -> None:
    assert Bootstrap().score_estimate("a", np.ones(25)).low == pytest.approx(
        share_estimate(25, 25).low
    )
    assert Bootstrap().score_estimate("a", np.full(25, 0.5)).low == pytest.approx(0.5)
