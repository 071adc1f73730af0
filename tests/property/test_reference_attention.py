"""The reference attention against a float64 softmax over the whole token mask."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.kernels.reference import ReferenceKernels

KERNELS = ReferenceKernels()
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
# One token, one under, at and over a block, and ragged lengths of several blocks.
LENGTHS = st.sampled_from([1, 2, 63, 64, 65, 127, 128, 129, 200, 256, 300])


@st.composite
def calls(draw):
    kv_len = draw(LENGTHS)
    q_len = draw(st.one_of(st.just(kv_len), st.integers(1, kv_len)))
    kv_heads = draw(st.integers(1, 2))
    return {
        "grid": BlockGrid(q_len=q_len, kv_len=kv_len, block_size=draw(st.sampled_from([64, 128]))),
        "batch": draw(st.integers(1, 2)),
        "kv_heads": kv_heads,
        "heads": kv_heads * draw(st.integers(1, 3)),
        "head_dim": draw(st.sampled_from([16, 64, 80])),
        "density": draw(st.sampled_from([0.0, 0.3, 0.7])),
        "dense_share": draw(st.sampled_from([0.0, 0.4])),
        "seed": draw(st.integers(0, 2**16)),
    }


def make_index(call):
    generator = torch.Generator().manual_seed(call["seed"])
    grid, shape = call["grid"], (call["batch"], call["heads"])
    mask = torch.rand(*shape, grid.num_rows, grid.num_cols, generator=generator) < call["density"]
    dense = torch.rand(*shape, grid.num_rows, generator=generator) < call["dense_share"]
    return BlockIndex.from_mask(mask, grid, dense)


def make_qkv(call, random_qkv, dtype):
    grid = call["grid"]
    return random_qkv(
        call["seed"],
        call["batch"],
        call["heads"],
        call["kv_heads"],
        grid.q_len,
        grid.kv_len,
        call["head_dim"],
        dtype,
    )


def eager(q, k, v, allowed, scale):
    """Attention in the inputs' own precision, the yardstick of the error bound."""
    group = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(group, 1).transpose(-1, -2) * scale
    weights = scores.masked_fill(~allowed, -math.inf).softmax(-1)
    return weights @ v.repeat_interleave(group, 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@given(call=calls())
def test_error_is_within_twice_that_of_an_eager_run(call, dtype, oracle, random_qkv):
    q, k, v = make_qkv(call, random_qkv, dtype)
    index, scale = make_index(call), call["head_dim"] ** -0.5
    mask = index.to_mask()
    expected, expected_lse = oracle.attention(q, k, v, mask, call["grid"], scale)
    naive = eager(q, k, v, oracle.token_mask(mask, call["grid"]), scale)

    out, lse = KERNELS.attention(q, k, v, index, scale=scale)

    assert out.dtype == dtype
    assert out.shape == q.shape
    assert out.transpose(1, 2).is_contiguous()
    floor = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 2e-6, torch.float64: 1e-14}
    bound = 2 * (naive.double() - expected).abs().max() + floor[dtype] * expected.abs().max()
    assert (out.double() - expected).abs().max() <= bound
    lse_error = (lse.double() - expected_lse).abs().max()
    assert lse_error <= (1e-12 if dtype == torch.float64 else 1e-5)


@given(call=calls())
def test_every_block_on_equals_dense_sdpa_as_list_and_as_flag(call, random_qkv):
    q, k, v = make_qkv(call, random_qkv, torch.float32)
    grid, scale = call["grid"], call["head_dim"] ** -0.5
    causal = torch.ones(grid.q_len, grid.kv_len, dtype=torch.bool).tril(grid.q_offset)
    expected = F.scaled_dot_product_attention(
        q, k, v, attn_mask=causal, scale=scale, enable_gqa=True
    )
    shape = (call["batch"], call["heads"], grid.num_rows, grid.num_cols)
    listed = BlockIndex.from_mask(torch.ones(shape, dtype=torch.bool), grid)
    flagged = BlockIndex.full(*shape[:2], grid, "cpu")
    for index in (listed, flagged):
        out, _ = KERNELS.attention(q, k, v, index, scale=scale)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@given(call=calls())
def test_blocks_outside_the_index_are_never_read(call, random_qkv):
    """K and V outside the index of one head are NaN; the output of that head does not change."""
    call = call | {"heads": call["kv_heads"]}
    q, k, v = make_qkv(call, random_qkv, torch.float32)
    index, grid = make_index(call), call["grid"]
    # One pattern row for all rows, so that a block is either used by some row or by none.
    used = index.to_mask().any(2).repeat_interleave(grid.block_size, -1)[..., : grid.kv_len, None]
    clean, clean_lse = KERNELS.attention(q, k, v, index, scale=0.1)
    poisoned, poisoned_lse = KERNELS.attention(
        q,
        k.masked_fill(~used, math.nan),
        v.masked_fill(~used, math.nan),
        index,
        scale=0.1,
    )
    assert torch.equal(clean, poisoned)
    assert torch.equal(clean_lse, poisoned_lse)
    assert clean.isfinite().all()


def test_each_row_reads_only_its_own_blocks(random_qkv):
    """A block that row 2 takes and row 3 does not: poisoning it must reach row 2 alone."""
    grid = BlockGrid(q_len=256, kv_len=256, block_size=64)
    q, k, v = random_qkv(0, 1, 1, 1, 256, 256, 16)
    mask = torch.zeros(1, 1, 4, 4, dtype=torch.bool)
    mask[0, 0, 2, 0] = True
    v[:, :, :64] = math.nan
    out, _ = KERNELS.attention(q, k, v, BlockIndex.from_mask(mask, grid), scale=0.1)
    by_row = out.view(4, 64, 16).isnan().flatten(1).any(1)
    assert by_row.tolist() == [True, False, True, False]


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
@pytest.mark.parametrize("kv_len", [1, 127, 128, 129], ids=lambda n: f"n{n}")
def test_head_dims_and_edge_lengths(head_dim, kv_len, oracle, random_qkv):
    grid = BlockGrid(q_len=kv_len, kv_len=kv_len, block_size=128)
    q, k, v = random_qkv(1, 1, 2, 1, kv_len, kv_len, head_dim)
    index = BlockIndex.from_mask(
        torch.zeros(1, 2, grid.num_rows, grid.num_cols, dtype=torch.bool), grid
    )
    expected, _ = oracle.attention(q, k, v, index.to_mask(), grid, 0.1)
    out, _ = KERNELS.attention(q, k, v, index, scale=0.1)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)


def test_chunks_of_a_sequence_equal_the_whole(random_qkv):
    """The last queries alone, at an offset that is no multiple of the block, give the same rows."""
    q, k, v = random_qkv(2, 1, 4, 2, 300, 300, 32)
    whole_grid = BlockGrid(q_len=300, kv_len=300, block_size=64)
    mask = torch.rand(1, 4, 5, 5, generator=torch.Generator().manual_seed(3)) < 0.5
    whole, whole_lse = KERNELS.attention(q, k, v, BlockIndex.from_mask(mask, whole_grid), scale=0.2)
    grid = BlockGrid(q_len=201, kv_len=300, block_size=64)
    index = BlockIndex.from_mask(mask[:, :, grid.first_row :], grid)
    part, part_lse = KERNELS.attention(q[:, :, 99:], k, v, index, scale=0.2)
    torch.testing.assert_close(part, whole[:, :, 99:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(part_lse, whole_lse[:, :, 99:], rtol=1e-5, atol=1e-5)


def test_large_finite_scores_give_no_nan(random_qkv):
    q, k, v = random_qkv(4, 1, 1, 1, 130, 130, 16)
    index = BlockIndex.full(1, 1, BlockGrid(q_len=130, kv_len=130, block_size=64), "cpu")
    out, lse = KERNELS.attention(q * 1e4, k * 1e4, v, index, scale=1.0)
    assert out.isfinite().all()
    assert lse.isfinite().all()


def test_work_follows_the_computed_blocks(random_qkv):
    """Multiply-adds counted by torch, at density 1 and at one block a row."""
    from torch.utils.flop_counter import FlopCounterMode

    grid = BlockGrid(q_len=1024, kv_len=1024, block_size=64)
    q, k, v = random_qkv(5, 1, 3, 1, 1024, 1024, 64)
    mask = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(6)) < 0.4
    dense = torch.tensor([[True, False, False]])
    for index in (BlockIndex.full(1, 3, grid, "cpu"), BlockIndex.from_mask(mask, grid, dense)):
        with FlopCounterMode(display=False) as counter:
            KERNELS.attention(q, k, v, index, scale=0.125)
        assert counter.get_total_flops() == int(index.blocks().sum()) * 2 * 2 * 64**3


def test_same_inputs_give_the_same_bits(random_qkv):
    grid = BlockGrid(q_len=300, kv_len=300, block_size=64)
    q, k, v = random_qkv(7, 2, 4, 2, 300, 300, 64)
    index = BlockIndex.from_mask(torch.rand(2, 4, 5, 5) < 0.5, grid)
    first, second = (KERNELS.attention(q, k, v, index, scale=0.125) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
