"""Masks that a calibration recorded, as benchmarks lay them out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sp_profile.artefact import read_masks
from sp_profile.bench.recorded_masks import recorded_case, unpack
from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import UsageError
from sp_runtime.profile import load_profile

PROFILE = Path(__file__).parents[2] / "profiles" / "smollm2-135m"
CPU = torch.device("cpu")


def longest() -> tuple:
    return max(read_masks(PROFILE, load_profile(PROFILE)), key=lambda rows: rows[0].tokens)


def test_a_prefix_is_the_recorded_mask() -> None:
    """Nine heads are one layer: the first."""
    grid = BlockGrid(q_len=640, kv_len=640, block_size=64)
    case = recorded_case(PROFILE, grid, heads=9, device=CPU)
    rows = longest()[:9]
    for head, row in enumerate(rows):
        expected = unpack(row, 64)[:10, :10] | torch.eye(10, dtype=torch.bool)
        assert torch.equal(case.mask[0, head], expected)
    assert case.wanted == pytest.approx(case.blocks() / 9 / 55)
    assert not case.dense.any()


def test_more_heads_take_whole_layers_that_lie_apart() -> None:
    grid = BlockGrid(q_len=512, kv_len=512, block_size=64)
    case = recorded_case(PROFILE, grid, heads=32, device=CPU)
    of_layer = {layer: [r for r in longest() if r.layer == layer] for layer in (0, 7, 15, 22)}
    masks = [unpack(row, 64)[:8, :8] for rows in of_layer.values() for row in rows][:32]
    diagonal = torch.eye(8, dtype=torch.bool)
    assert torch.equal(case.mask[0], torch.stack(masks) | diagonal)


def test_longer_grids_keep_the_density() -> None:
    columns = -(-longest()[0].tokens // 64)
    grids = [BlockGrid(q_len=n, kv_len=n, block_size=64) for n in (64 * columns, 256 * columns)]
    short, long = (recorded_case(PROFILE, grid, heads=9, device=CPU) for grid in grids)
    assert long.wanted == pytest.approx(short.wanted, rel=0.1)


def test_another_block_size_is_refused() -> None:
    with pytest.raises(UsageError, match="block size 64"):
        recorded_case(
            PROFILE, BlockGrid(q_len=512, kv_len=512, block_size=128), heads=4, device=CPU
        )
