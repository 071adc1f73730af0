"""MoA's solver and curves, and MInference's choice between candidates."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_profile.calibration_prompts import CalibrationPrompts
from sp_profile.head_search import SearchConfig, _chosen, _collection
from sp_profile.minference_search import choose, default_candidates
from sp_profile.moa import (
    WindowOption,
    allocate,
    diagonals,
    kept_by_diagonals,
    window_densities,
    window_options,
)
from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import UsageError
from sp_runtime.patterns.head_tables import window_tables
from sp_runtime.patterns.streaming import streaming_mask
from sp_runtime.profile import HeadWindow, PromptRecord, WindowTable

OPTIONS = st.builds(
    WindowOption, alpha=st.integers(1, 3000), beta=st.sampled_from([0, 31, 62, 500, 1000])
)


@settings(max_examples=60)
@given(
    option=OPTIONS,
    length=st.integers(1, 3000),
    block_size=st.sampled_from([64, 128]),
    sink=st.sampled_from([0, 1, 64, 200]),
    seed=st.integers(0, 2**31),
)
def test_curves_and_densities_are_those_of_the_masks(
    option, length, block_size, sink, seed
) -> None:
    grid = BlockGrid(q_len=length, kv_len=length, block_size=block_size)
    mask = streaming_mask(grid, sink, option.tokens(length))
    generator = torch.Generator().manual_seed(seed)
    mass = torch.rand(3, grid.num_rows, grid.num_cols, generator=generator)
    mass = mass.masked_fill(~grid.causal_mask(), 0)
    mass = mass / mass.sum(-1, keepdim=True)
    at = diagonals(option, length, block_size) - 1
    kept = kept_by_diagonals(mass, grid, sink)[:, at]
    expected = (mass.double() * mask).sum((-2, -1)) / grid.num_rows
    torch.testing.assert_close(kept, expected, atol=1e-9, rtol=0)
    (density,) = window_densities((option,), length, block_size, sink)
    assert density == int(mask.sum()) / grid.num_causal_blocks


@given(option=OPTIONS, length=st.integers(1, 1 << 20))
def test_windows_are_rounded_as_the_runtime_rounds_them(option, length) -> None:
    head = HeadWindow(layer=0, head=0, alpha=option.alpha, beta=option.beta / 1000, mass=1.0)
    table = window_tables(WindowTable(source="", density=1.0, sink=64, heads=(head,)))
    windows = table._make([head], torch.device("cpu"))
    assert int(windows.tokens(length)) == option.tokens(length)


def best(values: np.ndarray, costs: np.ndarray, budget: float) -> float:
    """The optimum over every assignment."""
    heads = range(len(values))
    return max(
        (
            float(np.mean([values[h, pick[h]] for h in heads]))
            for pick in itertools.product(range(len(costs)), repeat=len(values))
            if sum(costs[p] for p in pick) <= budget * len(values) + 1e-9
        ),
        default=-1.0,
    )


@settings(max_examples=60)
@given(
    heads=st.integers(1, 4),
    options=st.integers(1, 5),
    budget=st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**31),
    ties=st.booleans(),
)
def test_allocation_is_close_to_the_optimum_and_never_above_its_bound(
    heads, options, budget, seed, ties
) -> None:
    rng = np.random.default_rng(seed)
    values, costs = rng.random((heads, options)), rng.random(options)
    if ties:
        values, costs = values.round(1), costs.round(1) + 0.05
    costs[0] = 0.05
    found = allocate(values, costs, budget)
    rows = np.arange(heads)
    assert found.cost == pytest.approx(costs[found.choice].mean())
    assert found.cost <= budget + 1e-9
    assert found.value == pytest.approx(values[rows, found.choice].mean())
    optimum = best(values, costs, budget)
    assert found.value <= optimum + 1e-9 <= found.bound + 2e-9
    # The greedy part misses less than the one step that did not fit.
    step = (values.max(1) - values.min(1)).max() / heads
    assert optimum - found.value <= step + 1e-9


def test_a_budget_for_everything_takes_the_best_and_proves_it() -> None:
    values = np.array([[0.2, 0.9, 0.95], [0.5, 0.5, 0.6]])
    found = allocate(values, np.array([0.1, 0.5, 1.0]), 1.0)
    assert found.choice.tolist() == [2, 2]
    assert found.value == found.bound == pytest.approx(0.775)
    # An option that costs more and keeps no more is never taken.
    found = allocate(np.array([[0.5, 0.5]]), np.array([0.1, 0.2]), 1.0)
    assert found.choice.tolist() == [0]


def test_a_budget_that_nothing_fits_is_refused_with_the_least() -> None:
    with pytest.raises(UsageError, match=r"density 0.05 is under 0.1000"):
        allocate(np.array([[0.2, 0.9]]), np.array([0.1, 0.5]), 0.05)


def test_options_reach_from_one_block_to_the_whole_prompt() -> None:
    options = window_options(2048, 64)
    assert len({*options}) == len(options)
    assert WindowOption(alpha=64, beta=0) in options
    assert WindowOption(alpha=0, beta=0) not in options
    assert any(diagonals(option, 2048, 64) == 32 and option.beta == 0 for option in options)
    assert all(option.tokens(1) >= 1 for option in options)


def test_most_mass_wins_then_least_density_then_the_first() -> None:
    mass = np.array([[0.5, 0.9, 0.7], [0.9, 0.9, 0.8], [0.9, 0.9 + 1e-9, 0.1], [0.4, 0.4, 0.4]])
    density = np.array([[0.1, 0.9, 0.1], [0.5, 0.2, 0.1], [0.1, 0.5, 0.1], [0.3, 0.3, 0.3]])
    assert choose(mass, density).tolist() == [1, 1, 0, 0]


def test_candidates_are_the_papers() -> None:
    found = [(c.kind, c.vertical, c.slash) for c in default_candidates()]
    assert found == [
        ("a_shape", 100, 800),
        ("vertical_slash", 30, 800),
        ("vertical_slash", 100, 750),
        ("vertical_slash", 500, 700),
        ("vertical_slash", 3500, 100),
        ("block_sparse", 6400, 0),
    ]
    with pytest.raises(UsageError, match="top_k 0"):
        default_candidates(0)


def test_a_search_makes_the_calibrations_built_in_prompts_again(examples) -> None:
    profile = examples.make_profile()  # one built-in prompt of 300 tokens, one of its maker
    prompts = profile.calibration.prompts
    built_in = dataclasses.replace(prompts[0], task="json_kv")
    calibration = dataclasses.replace(profile.calibration, prompts=(built_in, prompts[1]))
    profile = dataclasses.replace(profile, calibration=calibration)
    made = _collection(profile, SearchConfig(model="tiny"))
    assert (made.tasks, made.lengths, made.samples) == (("json_kv",), (300,), 1)
    assert (made.seed, made.chat_template) == (calibration.seed, calibration.chat_template)
    with pytest.raises(UsageError, match="no calibration prompt of the profile has such a length"):
        _collection(profile, SearchConfig(model="tiny", lengths=(512,)))
    own = dataclasses.replace(calibration, prompts=calibration.prompts[1:])
    with pytest.raises(UsageError, match="prompts of its maker") as error:
        _collection(dataclasses.replace(profile, calibration=own), SearchConfig(model="tiny"))
    assert "--prompts" in error.value.hint


def test_prompts_that_the_calibration_never_saw_are_left_out(examples) -> None:
    profile = examples.make_profile()
    unseen = PromptRecord(sha256="e" * 64, tokens=512)

    def given(*records: PromptRecord) -> CalibrationPrompts:
        return CalibrationPrompts(
            records=records, chat_template=False, duplicates=0, problems=(), make=lambda: iter(())
        )

    config = SearchConfig(model="tiny", prompts=("own.jsonl",))
    known = profile.calibration.prompts
    assert _chosen(profile, config, given(*known, unseen)) == known
    config = dataclasses.replace(config, lengths=(512,))
    assert _chosen(profile, config, given(*known, unseen)) == known[1:]
    with pytest.raises(UsageError, match="none of these prompts is one that the profile"):
        _chosen(profile, config, given(unseen))
