"""The masks that benchmarks measure on: densities to the block, and who shares what."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp_profile.bench.masks import MASK_KINDS, MaskMaker, stretch
from sp_profile.bench.peers import all_blocks
from sp_runtime.block_index import BlockGrid, BlockIndex, normalise_mask
from sp_runtime.block_index_export import to_fa4_tensors
from sp_runtime.errors import UsageError

CPU = torch.device("cpu")


def maker(*, rows: int = 16, heads: int = 8, group: int = 2, cluster: int = 4, seed: int = 0):
    grid = BlockGrid(q_len=64 * rows, kv_len=64 * rows, block_size=64)
    return MaskMaker(grid=grid, heads=heads, group=group, cluster=cluster, seed=seed, device=CPU)


@given(
    kind=st.sampled_from([kind for kind in MASK_KINDS if kind != "pivot"]),
    density=st.floats(0.01, 1),
    rows=st.integers(1, 12),
)
def test_every_head_has_exactly_the_wanted_blocks(kind: str, density: float, rows: int) -> None:
    made = maker(rows=rows)
    (case,) = made.make(kind, density)
    forced, causal = 2 * rows - 1, made.grid.num_causal_blocks
    assert set(case.mask.sum((-2, -1)).flatten().tolist()) == {max(round(density * causal), forced)}
    assert torch.equal(case.mask, normalise_mask(case.mask, made.grid))  # causal, diagonal on
    assert case.mask[..., 0].all()
    assert bool(case.dense.all()) == (density >= 1)


def test_shared_masks_are_those_of_the_kv_head_and_of_no_other() -> None:
    (case,) = maker(heads=6, group=3).make("shared", 0.4)
    mask = case.mask[0]
    assert all(torch.equal(mask[h], mask[h - h % 3]) for h in range(6))
    assert not torch.equal(mask[0], mask[3])


@pytest.mark.parametrize("kind", ["neighbours", "planted"])
def test_clusters_of_neighbours_share(kind: str) -> None:
    (case,) = maker(heads=10, cluster=4).make(kind, 0.4)
    mask = case.mask[0]
    assert all(torch.equal(mask[h], mask[h - h % 4]) for h in range(10))
    assert not torch.equal(mask[0], mask[4])
    assert not torch.equal(mask[4], mask[8])


def test_random_masks_differ_between_heads_and_seeds_and_repeat() -> None:
    (a,), (b,), (c,) = (maker(seed=seed).make("random", 0.4) for seed in (1, 1, 2))
    assert torch.equal(a.mask, b.mask)
    assert not torch.equal(a.mask, c.mask)
    heads = a.mask[0].flatten(1)
    assert len({tuple(head.tolist()) for head in heads}) == 8


def test_a_planted_band_is_the_nearest_diagonals() -> None:
    (case,) = maker(rows=16).make("planted", 0.5)
    mask = case.mask[0, 0]
    distance = torch.arange(16)[:, None] - torch.arange(16)
    on = mask[:, 1:] & (distance[:, 1:] >= 0)
    off = ~mask[:, 1:] & (distance[:, 1:] >= 0)
    assert distance[:, 1:][on].max() <= distance[:, 1:][off].min()


def test_a_pivot_is_dense_and_even_computes_as_much() -> None:
    made = maker(heads=7)
    pivot, even = made.make("pivot", 0.3)
    assert pivot.blocks() == even.blocks()
    assert pivot.dense.sum() == 1
    assert not even.dense.any()
    counts = pivot.mask.sum((-2, -1))[0]
    causal = made.grid.num_causal_blocks
    assert counts[pivot.dense[0]].tolist() == [causal]
    assert set(counts[~pivot.dense[0]].tolist()) == {round(0.3 * causal)}
    spread = even.mask.sum((-2, -1))[0]
    assert spread.max() - spread.min() <= 1


@pytest.mark.parametrize("density", [0, -0.1, 1.01, float("nan")])
def test_a_density_outside_of_its_range_is_refused(density: float) -> None:
    with pytest.raises(UsageError, match="density"):
        maker().make("random", density)


def test_unknown_masks_are_refused() -> None:
    with pytest.raises(UsageError, match="banana"):
        maker().make("banana", 0.5)


def test_stretching_keeps_prefixes_and_densities() -> None:
    (case,) = maker(rows=12, heads=2).make("random", 0.5)
    assert torch.equal(stretch(case.mask, 5), case.mask[..., :5, :5])
    longer = stretch(case.mask, 36)
    assert torch.equal(longer[..., ::3, ::3], case.mask)
    assert longer.sum() == 9 * case.mask.sum()


@pytest.mark.parametrize("length", [512, 450])
def test_peers_get_every_block_once_and_in_order(length: int) -> None:
    """Full and partial lists joined are the mask again, ragged last rows included."""
    grid = BlockGrid(q_len=length, kv_len=length, block_size=64)
    made = MaskMaker(grid=grid, heads=3, group=1, cluster=2, seed=4, device=CPU)
    (case,) = made.make("random", 0.5)
    index = BlockIndex.from_mask(case.mask, grid, case.dense)
    counts, blocks = all_blocks(to_fa4_tensors(index))
    found = torch.zeros_like(case.mask)
    for h in range(3):
        for r in range(grid.num_rows):
            listed = blocks[0, h, r, : counts[0, h, r]]
            assert listed.tolist() == sorted(set(listed.tolist()))
            found[0, h, r, listed.long()] = True
    assert torch.equal(found, case.mask)
