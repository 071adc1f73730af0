"""Exact and sampled block mass against float64 sums over the whole softmax."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.errors import UsageError
from sp_runtime.kernels import reference
from sp_runtime.kernels.reference import ReferenceKernels

KERNELS = ReferenceKernels()
SCALE = 0.3


@st.composite
def grids(draw):
    kv_len = draw(st.sampled_from([1, 63, 64, 65, 128, 129, 200, 300]))
    q_len = draw(st.one_of(st.just(kv_len), st.integers(1, kv_len)))
    return BlockGrid(q_len=q_len, kv_len=kv_len, block_size=draw(st.sampled_from([64, 128])))


@st.composite
def head_slots(draw, batch, num_heads):
    slots = draw(st.integers(1, 4))
    rows = [
        draw(st.lists(st.integers(-1, num_heads - 1), min_size=slots, max_size=slots))
        for _ in range(batch)
    ]
    return torch.tensor(rows)


def mass_of(q, k, v, heads, grid):
    index = BlockIndex.full(q.shape[0], q.shape[1], grid, "cpu")
    _, lse = KERNELS.attention(q, k, v, index, scale=SCALE)
    return KERNELS.block_mass(q, k, lse, heads, grid, scale=SCALE)


def check_rows(mass, heads, grid):
    used = (heads >= 0)[..., None].expand(*heads.shape, grid.num_rows)
    torch.testing.assert_close(mass.sum(-1), used.to(mass.dtype), rtol=1e-5, atol=1e-5)
    assert (mass.masked_select(~grid.causal_mask()) == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@given(grid=grids(), heads=head_slots(2, 6), seed=st.integers(0, 99))
def test_block_mass_equals_the_oracle(grid, heads, seed, dtype, oracle, random_qkv):
    q, k, v = random_qkv(seed, 2, 6, 2, grid.q_len, grid.kv_len, 24, dtype)
    mass = mass_of(q, k, v, heads, grid)
    assert mass.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    check_rows(mass, heads, grid)
    expected = oracle.block_mass(q, k, heads, grid, SCALE)
    torch.testing.assert_close(mass.double(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("stride", [1, 3, 4, 8, 16, 64])
@given(grid=grids(), heads=head_slots(1, 4), seed=st.integers(0, 99))
def test_sampled_mass_equals_the_oracle(grid, heads, seed, stride, oracle, random_qkv):
    q, k, _ = random_qkv(seed, 1, 4, 2, grid.q_len, grid.kv_len, 24)
    mass = KERNELS.sampled_mass(q, k, heads, grid, stride=stride, scale=SCALE)
    check_rows(mass, heads, grid)
    expected = oracle.sampled_mass(q, k, heads, grid, stride, SCALE)
    torch.testing.assert_close(mass.double(), expected, rtol=1e-4, atol=1e-6)


def test_keys_taken_in_chunks_give_the_same_mass(monkeypatch, oracle, random_qkv):
    grid = BlockGrid(q_len=250, kv_len=300, block_size=64)
    q, k, v = random_qkv(1, 1, 4, 2, 250, 300, 24)
    heads = torch.tensor([[0, 3, -1, 1]])
    monkeypatch.setattr(reference, "TILE_SCORES", 1)  # one block of keys at a time
    torch.testing.assert_close(
        mass_of(q, k, v, heads, grid).double(),
        oracle.block_mass(q, k, heads, grid, SCALE),
        rtol=1e-4,
        atol=1e-6,
    )
    torch.testing.assert_close(
        KERNELS.sampled_mass(q, k, heads, grid, stride=5, scale=SCALE).double(),
        oracle.sampled_mass(q, k, heads, grid, 5, SCALE),
        rtol=1e-4,
        atol=1e-6,
    )


@given(
    grid=grids(),
    strides=st.lists(st.sampled_from([1, 3, 16, 64]), min_size=4, max_size=4).map(tuple),
    heads=head_slots(2, 4),
    seed=st.integers(0, 99),
)
def test_every_slot_has_its_own_stride(grid, strides, heads, seed, random_qkv):
    strides = strides[: heads.shape[1]]
    q, k, _ = random_qkv(seed, 2, 4, 2, grid.q_len, grid.kv_len, 24)
    mass = KERNELS.sampled_mass(q, k, heads, grid, stride=strides, scale=SCALE)
    for slot, stride in enumerate(strides):
        alone = heads[:, slot : slot + 1]
        expected = KERNELS.sampled_mass(q, k, alone, grid, stride=stride, scale=SCALE)
        torch.testing.assert_close(mass[:, slot : slot + 1], expected, rtol=1e-5, atol=1e-7)


def test_strides_that_do_not_fit_the_heads_are_refused(random_qkv):
    q, k, _ = random_qkv(0, 1, 1, 1, 64, 64, 8)
    grid = BlockGrid(q_len=64, kv_len=64, block_size=64)
    with pytest.raises(UsageError, match="2 strides for 1 heads"):
        KERNELS.sampled_mass(q, k, torch.tensor([[0]]), grid, stride=(4, 4), scale=1.0)


def test_stride_under_one_is_refused(random_qkv):
    q, k, _ = random_qkv(0, 1, 1, 1, 64, 64, 8)
    grid = BlockGrid(q_len=64, kv_len=64, block_size=64)
    with pytest.raises(UsageError, match="stride 0"):
        KERNELS.sampled_mass(q, k, torch.tensor([[0]]), grid, stride=0, scale=1.0)
