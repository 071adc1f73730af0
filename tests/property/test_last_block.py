"""The last-block estimate against float64 loops over (query, distance)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels import reference
from sp_runtime.kernels.reference import ReferenceKernels

KERNELS = ReferenceKernels()
SCALE = 0.25


@st.composite
def grids(draw):
    kv_len = draw(st.sampled_from([1, 2, 63, 64, 65, 128, 129, 200, 300]))
    q_len = draw(st.one_of(st.just(kv_len), st.integers(1, kv_len)))
    return BlockGrid(q_len=q_len, kv_len=kv_len, block_size=draw(st.sampled_from([64, 128])))


def check(estimate, q, k, grid, oracle):
    vertical, slash = oracle.last_block(q, k, grid, SCALE)
    for found, expected in ((estimate.vertical, vertical), (estimate.slash, slash)):
        assert found.shape == (q.shape[0], q.shape[1], grid.kv_len)
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(
            found.sum(-1), torch.ones_like(found[..., 0]), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@given(grid=grids(), group=st.integers(1, 3), seed=st.integers(0, 99))
def test_last_block_equals_the_oracle(grid, group, seed, dtype, oracle, random_qkv):
    q, k, _ = random_qkv(seed, 2, 2 * group, 2, grid.q_len, grid.kv_len, 24, dtype)
    estimate = KERNELS.last_block(q, k, grid, scale=SCALE)
    check(estimate, q, k, grid, oracle)


@given(grid=grids(), seed=st.integers(0, 99))
def test_keys_taken_in_chunks_give_the_same_estimate(grid, seed, oracle, random_qkv):
    q, k, _ = random_qkv(seed, 1, 4, 2, grid.q_len, grid.kv_len, 24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "TILE_SCORES", 1)  # one block of keys at a time
        estimate = KERNELS.last_block(q, k, grid, scale=SCALE)
    check(estimate, q, k, grid, oracle)


def test_a_head_that_looks_at_one_distance_is_one_slash():
    """Every query finds its own key six tokens back: all of slash lies at distance six."""
    positions = torch.eye(96)
    k = positions.view(1, 1, 96, 96)
    q = positions.roll(6, 0).view(1, 1, 96, 96) * 100
    grid = BlockGrid(q_len=96, kv_len=96, block_size=64)
    estimate = KERNELS.last_block(q, k, grid, scale=1.0)
    expected = torch.zeros(96)
    expected[6] = 1
    torch.testing.assert_close(estimate.slash[0, 0], expected)
