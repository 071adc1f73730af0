"""Which calls take the Hopper kernel, its launch grid, and the order of its tiles; on the CPU."""

from __future__ import annotations

import pytest
import torch

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.kernels.schedule import flat_rows, row_order
from sp_runtime.kernels.tuning import HOPPER, HopperConfig, uses_hopper_kernel

TAKEN = {"capability": (9, 0), "head_dim": 128, "block_size": 128, "element": "half"}


@pytest.mark.parametrize("head_dim", sorted(HOPPER))
def test_half_precision_on_hopper_takes_the_hopper_kernel(head_dim):
    assert uses_hopper_kernel(**(TAKEN | {"head_dim": head_dim}))


@pytest.mark.parametrize(
    "change",
    [
        {"capability": (8, 9)},
        {"capability": (10, 0)},
        {"capability": (12, 0)},
        {"head_dim": 80},
        {"head_dim": 256},
        {"block_size": 64},
        {"element": "float"},
        {"descriptors": False},
    ],
    ids=str,
)
def test_every_other_call_takes_the_portable_kernel(change):
    assert not uses_hopper_kernel(**(TAKEN | change))


def test_no_more_programs_than_tiles_or_multiprocessors():
    config = HopperConfig(stages=2)
    assert [config.programs(tiles, 100) for tiles in (1, 100, 101, 10**6)] == [1, 100, 100, 100]


def test_description_names_the_kernel():
    backend = pytest.importorskip("sp_runtime.kernels.triton_backend")

    def describe(capability, **options):
        kernels = backend.TritonKernels(capability=capability, **options)
        return kernels.describe(128, 128, torch.bfloat16)

    assert describe((9, 0)) == "warp-specialised Hopper kernel"
    assert describe((8, 0)) == describe((9, 0), hopper=False) == "portable Triton kernel"


def test_tiles_start_with_the_longest_of_each_kv_head():
    """Sections of one KV head; longest first inside; equal rows of the group stay neighbours."""
    grid = BlockGrid(q_len=5 * 64, kv_len=7 * 64, block_size=64)
    batch, heads, group = 2, 4, 2
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(batch, heads, grid.num_rows, grid.num_cols, generator=generator) < 0.5
    dense = torch.zeros(batch, heads, dtype=torch.bool)
    dense[:, 1] = True
    index = BlockIndex.from_mask(mask, grid, dense)
    order = row_order(index, group).long()
    assert torch.equal(order.sort().values, flat_rows(index).long())
    section = order // (group * grid.num_rows)
    assert torch.equal(section, section.sort().values)
    blocks = index.to_mask().sum(-1).flatten()[order].view(batch * heads // group, -1)
    assert bool((blocks.diff(dim=1) <= 0).all())
    full = row_order(BlockIndex.full(batch, heads, grid, "cpu"), group)
    assert full[:4].tolist() == [4, 9, 3, 8]
