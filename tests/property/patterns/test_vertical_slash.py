"""Vertical-slash against a literal transcription, and its laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.base import LastBlockEstimate
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.patterns.masks import forced_blocks, gamma_mask, spread_gamma_masks
from sp_runtime.patterns.vertical_slash import minimum_vertical_slash_mask

TOTAL = 1 << 12  # weights are multiples of 1 / TOTAL, so that float32 sums are exact
GAMMAS = st.sampled_from([0.125, 0.3, 0.5, 0.75, 0.9, 0.95, 0.998046875, 1.0])


@st.composite
def grids(draw: st.DrawFn) -> BlockGrid:
    kv_len = draw(st.integers(1, 700))
    return BlockGrid(
        q_len=draw(st.integers(1, kv_len)),
        kv_len=kv_len,
        block_size=draw(st.sampled_from([64, 128])),
    )


def weights(seed: int, lead: tuple[int, ...], length: int, concentration: float) -> torch.Tensor:
    """Distributions over `length` entries with many ties and zeros, in exact float32."""
    rng = np.random.default_rng(seed)
    flat = [
        rng.multinomial(TOTAL, rng.dirichlet(np.full(length, concentration)))
        for _ in range(int(np.prod(lead)))
    ]
    return torch.from_numpy(np.stack(flat)).float().view(*lead, length) / TOTAL


CONCENTRATIONS = st.sampled_from([0.01, 0.1, 1.0, 50.0])


@settings(max_examples=100)
@given(
    grid=grids(),
    seed=st.integers(0, 2**32),
    concentration=CONCENTRATIONS,
    gamma=GAMMAS,
    min_budget=st.sampled_from([1, 64, 100, 256]),
    extra=st.sampled_from([None, 0, 1, 64, 300]),
    cover=st.sampled_from(["one", "both"]),
)
def test_equals_the_literal_algorithm(
    literal, grid, seed, concentration, gamma, min_budget, extra, cover
) -> None:
    vertical = weights(seed, (2, 2), grid.kv_len, concentration)
    slash = weights(seed + 1, (2, 2), grid.kv_len, concentration)
    estimate = LastBlockEstimate(vertical=vertical, slash=slash)
    max_budget = None if extra is None else min_budget + extra
    found = ReferenceKernels().vertical_slash(
        estimate,
        grid,
        gamma=gamma,
        min_budget=min_budget,
        max_budget=max_budget,
        slash_cover=cover,
    )
    minimum = minimum_vertical_slash_mask(
        ReferenceKernels(), estimate, grid, min_budget=min_budget, slash_cover=cover
    )
    for b in range(2):
        for h in range(2):
            v, s = vertical[b, h].double().numpy(), slash[b, h].double().numpy()
            expected = literal.vertical_slash(
                v,
                s,
                grid,
                gamma=gamma,
                min_budget=min_budget,
                max_budget=max_budget,
                cover=cover,
            )
            np.testing.assert_array_equal(found[b, h].numpy(), expected)
            expected = literal.minimum(v, s, grid, min_budget, cover)
            np.testing.assert_array_equal(minimum[b, h].numpy(), expected)


@settings(max_examples=60)
@given(
    grid=grids(),
    seed=st.integers(0, 2**32),
    concentration=CONCENTRATIONS,
    cover=st.sampled_from(["one", "both"]),
)
def test_laws(grid, seed, concentration, cover) -> None:
    estimate = LastBlockEstimate(
        vertical=weights(seed, (1, 3), grid.kv_len, concentration),
        slash=weights(seed + 1, (1, 3), grid.kv_len, concentration),
    )

    def mask(gamma, slash_cover=cover):
        return ReferenceKernels().vertical_slash(
            estimate, grid, gamma=gamma, min_budget=1, max_budget=None, slash_cover=slash_cover
        )

    causal = grid.causal_mask()
    previous = torch.zeros_like(mask(0.5))
    for gamma in (0.1, 0.5, 0.9, 0.99, 1.0):
        found = mask(gamma)
        assert not (found & ~causal).any()
        assert found[:, :, forced_blocks(grid)].all()
        assert not (previous & ~found).any()  # monotone in gamma
        assert not (mask(gamma, "one") & ~mask(gamma, "both")).any()
        previous = found
    assert torch.equal(previous, causal.expand_as(previous))
    gammas = torch.tensor([0.1, 0.9, 1.0])
    for head, gamma in enumerate(gammas.tolist()):
        assert torch.equal(mask(gammas)[:, head], mask(gamma)[:, head])


def test_both_covers_every_token_of_a_chosen_diagonal() -> None:
    grid = BlockGrid(q_len=256, kv_len=256, block_size=64)
    for offset in range(1, 256):
        slash = torch.zeros(1, 1, 256)
        slash[..., offset] = 1
        vertical = torch.zeros(1, 1, 256)
        vertical[..., 0] = 1
        # Two diagonals: the forced main one and the one that holds the offset.
        mask = ReferenceKernels().vertical_slash(
            LastBlockEstimate(vertical=vertical, slash=slash),
            grid,
            gamma=0.9,
            min_budget=128,
            max_budget=128,
            slash_cover="both",
        )[0, 0]
        assert all(mask[i // 64, (i - offset) // 64] for i in range(offset, 256))


def test_forced_blocks_count_inside_the_budget() -> None:
    grid = BlockGrid(q_len=512, kv_len=512, block_size=64)
    vertical, slash = torch.zeros(1, 1, 512), torch.zeros(1, 1, 512)
    vertical[..., 200] = 1  # block 3
    slash[..., 300] = 1  # block diagonal 4
    estimate = LastBlockEstimate(vertical=vertical, slash=slash)

    def mask(budget):
        return ReferenceKernels().vertical_slash(
            estimate, grid, gamma=0.9, min_budget=budget, max_budget=budget, slash_cover="one"
        )[0, 0]

    assert torch.equal(mask(64), forced_blocks(grid))
    expected = forced_blocks(grid)
    expected[3:, 3] = True
    expected[range(4, 8), range(4)] = True
    assert torch.equal(mask(128), expected)


@settings(max_examples=100)
@given(
    grid=grids(),
    seed=st.integers(0, 2**32),
    concentration=CONCENTRATIONS,
    gamma=GAMMAS,
)
def test_gamma_mask_equals_the_literal_algorithm(literal, grid, seed, concentration, gamma) -> None:
    mass = torch.zeros(2, grid.num_rows, grid.num_cols)
    for row in range(grid.num_rows):
        cols = grid.first_row + row + 1
        mass[:, row, :cols] = weights(seed + row, (2,), cols, concentration)
    found = gamma_mask(mass, gamma)
    for each, expected in zip(found, mass, strict=True):
        np.testing.assert_array_equal(
            each.numpy(), literal.gamma_mask(expected.double().numpy(), gamma)
        )
    covered = (mass * found).sum(-1)
    assert (covered >= gamma - 1e-6).all()


@settings(max_examples=100)
@given(
    grid=grids(),
    seed=st.integers(0, 2**32),
    concentration=CONCENTRATIONS,
    gamma=st.floats(0.05, 1),
    slack=st.one_of(st.just(1.0), st.floats(1, 8)),
)
def test_spread_masks_keep_the_fewest_of_the_map_and_leave_no_row_behind(
    literal, grid, seed, concentration, gamma, slack
) -> None:
    mass = torch.zeros(2, grid.num_rows, grid.num_cols)
    for row in range(grid.num_rows):
        cols = grid.first_row + row + 1
        mass[:, row, :cols] = weights(seed + row, (2,), cols, concentration)
    # A hair to either side of gamma, as the sums are of other precision.
    under, found, over = (
        spread_gamma_masks(mass, (min(max(gamma + d, 1e-6), 1.0),), row_slack=slack)[0].numpy()
        for d in (-1e-5, 0, 1e-5 if gamma < 1 else 0)
    )
    expected = [literal.spread_mask(each.double().numpy(), gamma, slack) for each in mass]
    assert (under <= expected).all()
    assert (over >= expected).all()
    kept = (mass * torch.from_numpy(found)).sum(-1)
    assert (kept.mean(-1) >= gamma - 1e-5).all()
    assert (kept >= 1 - slack * (1 - gamma) - 1e-5).all()
    assert found.any(-1).all()


@pytest.mark.parametrize("gamma", [0.5, 0.9, 1.0])
def test_one_hot_estimates_give_forced_blocks_and_theirs(gamma: float) -> None:
    grid = BlockGrid(q_len=300, kv_len=300, block_size=64)
    one_hot = torch.zeros(1, 1, 300)
    one_hot[..., 0] = 1
    mask = ReferenceKernels().vertical_slash(
        LastBlockEstimate(vertical=one_hot, slash=one_hot),
        grid,
        gamma=gamma,
        min_budget=1,
        max_budget=None,
        slash_cover="one",
    )[0, 0]
    expected = forced_blocks(grid) if gamma < 1 else grid.causal_mask()
    assert torch.equal(mask, expected)
