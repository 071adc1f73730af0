"""Index exports: FlexAttention against FlexAttention, the others against their definition."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.block_index_export import to_bsr, to_fa4_tensors, to_flex_block_mask
from sp_runtime.errors import UnsupportedError


def make_index(kv_len, q_offset=0, block_size=64, batch=1, heads=2, seed=0):
    grid = BlockGrid(q_len=kv_len - q_offset, kv_len=kv_len, block_size=block_size)
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, heads, grid.num_rows)
    mask = torch.rand(*shape, grid.num_cols, generator=generator) < 0.4
    dense = torch.rand(shape, generator=generator) < 0.2
    return BlockIndex.from_mask(mask, grid, dense)


@st.composite
def aligned_indexes(draw):
    block_size = draw(st.sampled_from([64, 128]))
    kv_len = draw(st.sampled_from([1, 64, 65, 128, 200, 256, 300]))
    rows = -(-kv_len // block_size)
    offset = block_size * draw(st.integers(0, rows - 1))
    index = make_index(kv_len, offset, block_size, batch=2, seed=draw(st.integers(0, 99)))
    # The device's own builder leaves room behind the lists, and nothing written there.
    spare = torch.full((draw(st.integers(0, 9)),), 2**30, dtype=torch.int32)
    return replace(index, col_idx=torch.cat((index.col_idx, spare)))


def listed(counts, indices, num_cols):
    """The listed columns of every row as a bool mask [..., num_cols]."""
    mask = torch.zeros(*counts.shape, num_cols, dtype=torch.bool)
    for position in torch.cartesian_prod(*map(torch.arange, counts.shape)).tolist():
        row = tuple(position)
        cols = indices[row][: counts[row]].long()
        assert cols.tolist() == sorted(set(cols.tolist()))
        mask[row][cols] = True
    return mask


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("kv_len", [64, 100, 256, 300])
def test_eager_flex_attention_equals_the_oracle(kv_len, oracle, random_qkv):
    q, k, v = random_qkv(kv_len, 1, 4, 2, kv_len, kv_len, 32)
    index = make_index(kv_len, heads=4)
    found = flex_attention(
        q, k, v, block_mask=to_flex_block_mask(index), scale=0.2, enable_gqa=True
    )
    expected, _ = oracle.attention(q, k, v, index.to_mask(), index.grid, 0.2)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@given(index=aligned_indexes())
def test_flex_block_mask_equals_the_one_that_flex_attention_makes(index):
    """Built by torch from the token mask alone: the same blocks, partial and full."""
    grid = index.grid
    found = to_flex_block_mask(index)
    made = create_block_mask(
        found.mask_mod,
        index.batch,
        index.num_heads,
        grid.q_len,
        grid.kv_len,
        device="cpu",
        BLOCK_SIZE=grid.block_size,
    )
    assert found.seq_lengths == made.seq_lengths
    for kind in ("kv", "full_kv"):
        masks = [
            listed(getattr(m, f"{kind}_num_blocks"), getattr(m, f"{kind}_indices"), grid.num_cols)
            for m in (found, made)
        ]
        assert torch.equal(*masks), kind


@given(index=aligned_indexes())
def test_fa4_lists_are_the_partial_and_the_full_blocks(index, oracle):
    grid, tensors = index.grid, to_fa4_tensors(index)
    assert tensors.block_size == (grid.block_size, grid.block_size)
    partial = listed(tensors.mask_block_cnt, tensors.mask_block_idx, grid.num_cols)
    full = listed(tensors.full_block_cnt, tensors.full_block_idx, grid.num_cols)
    for name in ("mask_block_cnt", "mask_block_idx", "full_block_cnt", "full_block_idx"):
        tensor = getattr(tensors, name)
        assert tensor.dtype == torch.int32
        assert tensor.is_contiguous()
    assert not (partial & full).any()
    assert torch.equal(partial | full, index.to_mask())
    # Full means that every query sees every key of a whole block.
    tokens = oracle.token_mask(index.to_mask(), grid)
    size = grid.block_size
    for b, h, r, c in (partial | full).nonzero().tolist():
        tile = tokens[b, h, r * size : (r + 1) * size, c * size : (c + 1) * size]
        assert full[b, h, r, c] == (tile.shape[1] == size and bool(tile.all()))


def test_fa4_lists_of_more_than_an_int32_counts_are_refused():
    grid = BlockGrid(q_len=2**20, kv_len=2**20, block_size=64)
    index = BlockIndex(
        grid=grid,
        row_ptr=torch.zeros(1, dtype=torch.int32),
        col_idx=torch.zeros(1, dtype=torch.int32),
        dense=torch.ones(1, dtype=torch.bool).expand(1, 8, grid.num_rows),
    )
    with pytest.raises(UnsupportedError, match="131072 rows of 16384 blocks"):
        to_fa4_tensors(index)


@pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")
@pytest.mark.parametrize("q_offset", [0, 64, 100], ids=lambda n: f"offset{n}")
def test_bsr_of_each_head_is_the_block_mask(q_offset):
    index = make_index(300, q_offset, batch=2, heads=3)
    bsr, mask = to_bsr(index), index.to_mask()
    assert bsr.indptr.dtype == bsr.indices.dtype == torch.int32
    for b in range(2):
        for h in range(3):
            indptr, indices = bsr.head(b, h)
            values = torch.ones(len(indices), 1, 1)
            matrix = torch.sparse_bsr_tensor(
                indptr, indices, values, mask.shape[2:], check_invariants=True
            )
            assert torch.equal(matrix.to_dense().bool(), mask[b, h])


@pytest.mark.parametrize("export", [to_flex_block_mask, to_fa4_tensors])
def test_a_misaligned_query_offset_is_refused(export):
    with pytest.raises(UnsupportedError, match="offset 100 is no multiple of the block size 64"):
        export(make_index(300, 100))
