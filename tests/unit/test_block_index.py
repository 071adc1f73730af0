"""The block grid and the CSR index of a sequence."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp_runtime import block_index
from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.errors import UnsupportedError, UsageError


@st.composite
def grids(draw):
    kv_len = draw(st.integers(1, 700))
    q_len = draw(st.one_of(st.just(kv_len), st.integers(1, kv_len)))
    return BlockGrid(q_len=q_len, kv_len=kv_len, block_size=draw(st.sampled_from([64, 128])))


def draw_mask(grid, seed, batch=2, heads=3):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, heads, grid.num_rows, grid.num_cols, generator=generator) < 0.4
    dense = torch.rand(batch, heads, grid.num_rows, generator=generator) < 0.3
    return mask, dense


@given(grid=grids())
def test_grid_counts_follow_from_the_token_positions(grid):
    size = grid.block_size
    query_blocks = sorted({i // size for i in range(grid.q_offset, grid.kv_len)})
    assert grid.first_row == query_blocks[0]
    assert grid.num_rows == len(query_blocks)
    assert grid.num_cols == len({j // size for j in range(grid.kv_len)})
    pairs = [(r, c) for r in query_blocks for c in range(grid.num_cols) if c <= r]
    assert grid.num_causal_blocks == len(pairs) == int(grid.causal_mask().sum())
    assert all(grid.causal_mask()[r - grid.first_row, c] for r, c in pairs)
    assert grid.diagonal_mask().nonzero().tolist() == [
        [r - grid.first_row, r] for r in query_blocks
    ]


@pytest.mark.parametrize(
    ("q_len", "kv_len", "blocks", "rows"),
    [
        (256, 256, 0, 0),
        (256, 256, 1, 1),  # the last row is whole
        (256, 224, 1, 1),  # half a block and more is in it
        (256, 216, 1, 2),  # 24 of 64 queries: the question may begin in the row before
        (24, 216, 1, 1),  # and no other row is there
        (256, 216, 0, 0),
        (256, 216, 9, 4),
    ],
)
def test_closing_rows_hold_the_last_blocks_of_queries(q_len, kv_len, blocks, rows):
    grid = BlockGrid(q_len=min(q_len, kv_len), kv_len=kv_len, block_size=64)
    assert grid.closing_rows(blocks) == rows


def test_a_misaligned_offset_gives_a_partial_first_row():
    grid = BlockGrid(q_len=150, kv_len=250, block_size=64)
    assert (grid.q_offset, grid.first_row, grid.num_rows) == (100, 1, 3)


@given(grid=grids(), seed=st.integers(0, 99))
def test_mask_round_trip(grid, seed):
    mask, dense = draw_mask(grid, seed)
    index = BlockIndex.from_mask(mask, grid, dense)
    expected = (mask | dense[..., None]) & grid.causal_mask() | grid.diagonal_mask()
    assert torch.equal(index.to_mask(), expected)
    again = BlockIndex.from_mask(index.to_mask(), grid, index.dense)
    assert torch.equal(again.row_ptr, index.row_ptr)
    assert torch.equal(again.col_idx, index.col_idx)


@given(grid=grids(), seed=st.integers(0, 99))
def test_csr_lists_are_ascending_end_at_the_diagonal_and_are_empty_where_dense(grid, seed):
    mask, dense = draw_mask(grid, seed)
    index = BlockIndex.from_mask(mask, grid, dense)
    assert index.row_ptr.dtype == index.col_idx.dtype == torch.int32
    starts = index.row_ptr.tolist()
    for row, (start, stop) in enumerate(pairwise(starts)):
        cols = index.col_idx[start:stop].tolist()
        if index.dense.flatten()[row]:
            assert cols == []
        else:
            assert cols == sorted(set(cols))
            assert cols[-1] == grid.first_row + row % grid.num_rows


@given(grid=grids(), seed=st.integers(0, 99))
def test_density_is_computed_blocks_over_causal_blocks(grid, seed):
    index = BlockIndex.from_mask(*draw_mask(grid, seed)[:1], grid, draw_mask(grid, seed)[1])
    blocks = index.to_mask().sum((-1, -2))
    assert torch.equal(index.blocks(), blocks)
    assert torch.equal(index.density(), blocks.double() / grid.num_causal_blocks)
    assert index.density().dtype == torch.float64


def test_full_is_every_causal_block_as_flags():
    grid = BlockGrid(q_len=200, kv_len=300, block_size=64)
    index = BlockIndex.full(2, 3, grid, "cpu")
    assert (index.batch, index.num_heads) == (2, 3)
    assert torch.equal(index.to_mask(), grid.causal_mask().expand(2, 3, -1, -1))
    assert (index.density() == 1).all()
    assert int(index.row_ptr[-1]) == 0


def test_capacity_beyond_the_last_list_is_ignored():
    grid = BlockGrid(q_len=128, kv_len=128, block_size=64)
    index = BlockIndex.from_mask(torch.ones(1, 1, 2, 2, dtype=torch.bool), grid)
    padded = torch.cat([index.col_idx, torch.full((5,), 99, dtype=torch.int32)])
    roomy = BlockIndex(grid=grid, row_ptr=index.row_ptr, col_idx=padded, dense=index.dense)
    assert torch.equal(roomy.to_mask(), index.to_mask())
    assert torch.equal(roomy.blocks(), index.blocks())


def test_dense_flags_of_a_head_apply_to_all_its_rows():
    grid = BlockGrid(q_len=128, kv_len=128, block_size=64)
    mask = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    index = BlockIndex.from_mask(mask, grid, torch.tensor([[True, False]]))
    assert index.dense.tolist() == [[[True, True], [False, False]]]
    assert index.blocks().tolist() == [[3, 2]]


def test_long_grids_keep_their_counts_exact():
    """A million tokens: counted in python integers, beyond int32."""
    grid = BlockGrid(q_len=1 << 22, kv_len=1 << 22, block_size=64)
    rows = (1 << 22) // 64
    assert grid.num_causal_blocks == rows * (rows + 1) // 2 > 2**31
    assert int(BlockIndex.full(1, 1, grid, "cpu").blocks()) == grid.num_causal_blocks


@pytest.mark.parametrize(
    ("q_len", "kv_len", "block_size", "message"),
    [(64, 64, 32, "block size 32"), (0, 64, 64, "q_len 0"), (65, 64, 64, "q_len 65")],
)
def test_impossible_grids_are_refused(q_len, kv_len, block_size, message):
    with pytest.raises(UsageError, match=message):
        BlockGrid(q_len=q_len, kv_len=kv_len, block_size=block_size)


def test_masks_and_flags_of_another_shape_are_refused():
    grid = BlockGrid(q_len=128, kv_len=128, block_size=64)
    with pytest.raises(UsageError, match="block mask has shape"):
        BlockIndex.from_mask(torch.ones(1, 1, 2, 3, dtype=torch.bool), grid)
    with pytest.raises(UsageError, match="dense flags have shape"):
        BlockIndex.from_mask(
            torch.ones(1, 1, 2, 2, dtype=torch.bool), grid, torch.ones(1, 3, dtype=torch.bool)
        )


def test_more_blocks_than_int32_holds_are_refused(monkeypatch):
    monkeypatch.setattr(block_index, "MAX_LISTED_BLOCKS", 5)
    grid = BlockGrid(q_len=192, kv_len=192, block_size=64)
    mask = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    with pytest.raises(UnsupportedError, match="6 listed blocks"):
        BlockIndex.from_mask(mask, grid)
    assert BlockIndex.from_mask(mask, grid, torch.tensor([[True]])).dense.all()
