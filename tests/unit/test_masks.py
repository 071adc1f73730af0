"""Pure mask functions: forced blocks, gamma-masks, block sums, divergences, streaming."""

from __future__ import annotations

import math

import pytest
import torch

from sp_runtime import selection
from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.base import LastBlockEstimate
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.patterns.masks import (
    block_sum,
    flat_gamma_masks,
    forced_blocks,
    gamma_mask,
    spread_gamma_masks,
    sqrt_jsd,
    top_blocks,
)
from sp_runtime.patterns.query_aware import query_aware_masks
from sp_runtime.patterns.streaming import streaming_mask
from sp_runtime.patterns.vertical_slash import minimum_vertical_slash_mask
from sp_runtime.selection import sort_as_one


def grid_of(q_len: int, kv_len: int, block_size: int = 64) -> BlockGrid:
    return BlockGrid(q_len=q_len, kv_len=kv_len, block_size=block_size)


def test_gamma_mask_takes_the_block_that_reaches_gamma_and_breaks_ties_low() -> None:
    mass = torch.tensor([[0.25, 0.25, 0.25, 0.25, 0.0], [0.125, 0.5, 0.125, 0.125, 0.125]])
    assert gamma_mask(mass, 0.5).int().tolist() == [[1, 1, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert gamma_mask(mass, 0.5001).int().tolist() == [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0]]


def test_gamma_mask_of_one_is_every_causal_block_even_without_mass() -> None:
    mass = torch.zeros(3, 5)
    mass[:, 0] = 1
    expected = torch.ones(3, 5, dtype=torch.bool).tril(2)
    assert torch.equal(gamma_mask(mass, 1.0), expected)
    assert torch.equal(gamma_mask(mass[None], torch.tensor([1.0]))[0], expected)


def test_gamma_mask_takes_a_threshold_for_each_head() -> None:
    mass = torch.rand(2, 3, 4, 6).tril(2)
    mass /= mass.sum(-1, keepdim=True)
    gammas = torch.tensor([0.3, 0.9, 1.0])
    together = gamma_mask(mass, gammas)
    for head, gamma in enumerate(gammas.tolist()):
        assert torch.equal(together[:, head], gamma_mask(mass[:, head], gamma))


def test_selection_does_not_depend_on_the_slice_size(monkeypatch: pytest.MonkeyPatch) -> None:
    mass = torch.rand(2, 5, 4, 6).tril(2)
    gammas = torch.tensor([0.2, 0.4, 0.6, 0.8, 0.95])
    whole = gamma_mask(mass, gammas), flat_gamma_masks(mass, (0.7,))[0]
    monkeypatch.setattr(selection, "_MAX_SORTED", 3 * 4 * 6)
    assert torch.equal(gamma_mask(mass, gammas), whole[0])
    assert torch.equal(flat_gamma_masks(mass, (0.7,))[0], whole[1])


def test_one_sort_of_packed_rows_equals_a_sort_of_each() -> None:
    x = torch.rand(2, 3, 50).mul(8).floor().div(64)  # many ties, zeros among them
    x[0, 0, :5] = torch.tensor([1e-38, 0.0, 1.0, 1e-45, 0.5])
    found, expected = sort_as_one(x), x.sort(dim=-1, descending=True, stable=True)
    assert torch.equal(found[0], expected.values)
    assert torch.equal(found[1], expected.indices)


def test_spread_masks_leave_rows_without_what_others_need_more() -> None:
    mass = torch.tensor([[1.0, 0.0, 0.0], [0.7, 0.3, 0.0], [0.4, 0.3, 0.3]])
    (rows,) = spread_gamma_masks(mass, (0.8,), row_slack=1)
    assert torch.equal(rows, gamma_mask(mass, 0.8))
    assert rows.int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    # 2.4 of 3 are wanted: 1, 0.7, 0.4 and the first of the ties; 0.4 of a row may be missing.
    (spread,) = spread_gamma_masks(mass, (0.8,), row_slack=2)
    assert spread.int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 0]]
    # 0.8 of the last row may be missing, so nothing but its share of the map counts.
    (loose,) = spread_gamma_masks(mass, (0.6,), row_slack=2)
    assert loose.int().tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0]]


def test_spread_masks_keep_the_largest_block_of_every_row() -> None:
    mass = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]])
    (mask,) = spread_gamma_masks(mass, (0.1,), row_slack=64)
    assert mask.int().tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
    whole = spread_gamma_masks(mass, (1.0, torch.tensor(1.0)), row_slack=2)
    assert all(torch.equal(mask, torch.ones(3, 3).tril().bool()) for mask in whole)


def test_flat_gamma_mask_spends_the_budget_where_the_map_is_largest() -> None:
    mass = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert flat_gamma_masks(mass, (0.5,))[0].int().tolist() == [[1, 0], [0, 0]]
    assert flat_gamma_masks(mass, (0.6,))[0].int().tolist() == [[1, 0], [1, 0]]
    assert flat_gamma_masks(mass, (1.0,))[0].int().tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize("kv_len", [1, 63, 64, 65, 127, 200], ids="n{}".format)
def test_block_sum_keeps_the_total_and_the_ragged_bin(kv_len: int) -> None:
    x = torch.rand(2, 3, kv_len, dtype=torch.float64)
    grid = grid_of(kv_len, kv_len)
    bins = block_sum(x, grid)
    assert bins.shape == (2, 3, grid.num_cols)
    tail = (grid.num_cols - 1) * 64
    torch.testing.assert_close(bins[..., -1], x[..., tail:].sum(-1))
    torch.testing.assert_close(bins.sum(-1), x.sum(-1))


def test_forced_blocks_on_a_chunk_grid() -> None:
    forced = forced_blocks(grid_of(130, 300))
    assert forced.int().tolist() == [[1, 0, 1, 0, 0], [1, 0, 0, 1, 0], [1, 0, 0, 0, 1]]


def test_top_blocks_orders_ties_by_index() -> None:
    weights = torch.tensor([[1.0, 2.0, 2.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    kept = top_blocks(weights, torch.tensor([3, 2]))
    assert kept.int().tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        pytest.param([1.0, 0.0], [0.0, 1.0], math.sqrt(math.log(2)), id="disjoint"),
        pytest.param([1.0, 0.0, 0.0], [1.0, 0.0, 0.0], 0.0, id="equal one-hot"),
        pytest.param([0.0, 0.0], [0.0, 0.0], 0.0, id="all zero"),
        pytest.param([1e-45, 1.0], [0.0, 1.0], 0.0, id="denormal"),
        pytest.param([0.5, 0.5], [0.25, 0.75], 0.183908, id="quarter apart"),
    ],
)
def test_sqrt_jsd(p: list[float], q: list[float], expected: float) -> None:
    found = sqrt_jsd(torch.tensor(p), torch.tensor(q))
    assert float(found) == pytest.approx(expected, abs=1e-5)
    assert float(sqrt_jsd(torch.tensor(q), torch.tensor(p))) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 66, 129, 1000], ids="w{}".format)
@pytest.mark.parametrize("sink", [0, 1, 64, 65], ids="s{}".format)
@pytest.mark.parametrize("q_len", [300, 130, 1], ids="q{}".format)
def test_streaming_mask_is_the_blocks_that_hold_a_kept_token(
    window: int, sink: int, q_len: int
) -> None:
    grid = grid_of(q_len, 300)
    expected = forced_blocks(grid)
    # Whole block rows, so that chunks take the same blocks as the whole prompt.
    for i in range(grid.first_row * 64, 300):
        for j in range(i + 1):
            if j < sink or i - j < window:
                expected[i // 64 - grid.first_row, j // 64] = True
    assert torch.equal(streaming_mask(grid, sink, window), expected)


@pytest.mark.parametrize(("q_len", "kv_len"), [(300, 300), (130, 300), (1, 70)])
def test_mask_functions_never_read_values_on_the_host(q_len: int, kv_len: int) -> None:
    """Meta tensors have no values: anything that would wait for one raises."""
    grid = grid_of(q_len, kv_len)
    q = torch.empty(2, 4, q_len, 16, device="meta")
    k = torch.empty(2, 2, kv_len, 16, device="meta")
    x = torch.empty(2, 4, kv_len, device="meta")
    mass = torch.empty(2, 4, grid.num_rows, grid.num_cols, device="meta")
    estimate = LastBlockEstimate(vertical=x, slash=x)
    means = ReferenceKernels().pool(q, k, grid)
    shape = (2, 4, grid.num_rows, grid.num_cols)
    found = [
        gamma_mask(mass, 0.9),
        gamma_mask(mass, torch.empty(4, device="meta")),
        ReferenceKernels().vertical_slash(
            estimate, grid, gamma=0.9, min_budget=64, max_budget=128, slash_cover="both"
        ),
        minimum_vertical_slash_mask(
            ReferenceKernels(), estimate, grid, min_budget=64, slash_cover="one"
        ),
        *query_aware_masks(q, k, grid, gammas=(0.9,), scale=0.25),
        ReferenceKernels().query_aware(means, grid, gamma=0.9, scale=0.25),
    ]
    assert all(mask.shape == shape and mask.dtype == torch.bool for mask in found)
    row = ReferenceKernels().pooled_row(means, grid, scale=0.25)
    assert row.shape == (2, 4, grid.num_cols)
    assert sqrt_jsd(block_sum(x, grid), block_sum(x, grid)).shape == (2, 4)
