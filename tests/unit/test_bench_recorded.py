"""Masks that a calibration recorded, as benchmarks lay them out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sp_profile.artefact import read_masks
from sp_profile.bench.inputs import LayerShape, random_inputs
from sp_profile.bench.methods import bench_method, prepare
from sp_profile.bench.recorded_masks import read_recorded, unpack
from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import UsageError
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.profile import load_profile

PROFILE = Path(__file__).parents[2] / "profiles" / "smollm2-135m"
CPU = torch.device("cpu")


def longest() -> tuple:
    return max(read_masks(PROFILE, load_profile(PROFILE)), key=lambda rows: rows[0].tokens)


def test_a_prefix_is_the_recorded_mask() -> None:
    """Nine heads are one layer: the first."""
    grid = BlockGrid(q_len=640, kv_len=640, block_size=64)
    case = read_recorded(PROFILE).case(grid, heads=9, device=CPU)
    rows = longest()[:9]
    for head, row in enumerate(rows):
        expected = unpack(row, 64)[:10, :10] | torch.eye(10, dtype=torch.bool)
        assert torch.equal(case.mask[0, head], expected)
    assert case.wanted == pytest.approx(case.blocks() / 9 / 55)
    assert not case.dense.any()


def test_more_heads_take_whole_layers_that_lie_apart() -> None:
    grid = BlockGrid(q_len=512, kv_len=512, block_size=64)
    case = read_recorded(PROFILE).case(grid, heads=32, device=CPU)
    of_layer = {layer: [r for r in longest() if r.layer == layer] for layer in (0, 7, 15, 22)}
    masks = [unpack(row, 64)[:8, :8] for rows in of_layer.values() for row in rows][:32]
    diagonal = torch.eye(8, dtype=torch.bool)
    assert torch.equal(case.mask[0], torch.stack(masks) | diagonal)


def test_longer_grids_keep_the_density() -> None:
    columns = -(-longest()[0].tokens // 64)
    grids = [BlockGrid(q_len=n, kv_len=n, block_size=64) for n in (64 * columns, 256 * columns)]
    short, long = (read_recorded(PROFILE).case(grid, heads=9, device=CPU) for grid in grids)
    assert long.wanted == pytest.approx(short.wanted, rel=0.1)


def test_another_block_size_is_refused() -> None:
    with pytest.raises(UsageError, match="block size 64"):
        read_recorded(PROFILE).case(
            BlockGrid(q_len=512, kv_len=512, block_size=128), heads=4, device=CPU
        )


def test_more_heads_than_recorded_are_refused() -> None:
    grid = BlockGrid(q_len=512, kv_len=512, block_size=64)
    with pytest.raises(UsageError, match="holds 270 heads, 300 are needed"):
        read_recorded(PROFILE).case(grid, heads=300, device=CPU)


def test_layers_take_recorded_ones_of_their_depth() -> None:
    """32 heads are four recorded layers of nine; the last model layers have no later ones."""
    grid = BlockGrid(q_len=512, kv_len=512, block_size=64)
    recorded = read_recorded(PROFILE)
    diagonal = torch.eye(8, dtype=torch.bool)
    for layer, first in ((0, 0), (15, 14), (31, 26)):
        rows = [row for row in longest() if first <= row.layer < first + 4][:32]
        expected = torch.stack([unpack(row, 64)[:8, :8] for row in rows]) | diagonal
        found = recorded.of_layer(layer, 32, grid, heads=32, device=CPU)
        assert torch.equal(found[0], expected)


def test_a_prefill_attends_over_the_recorded_blocks(oracle) -> None:
    shape = LayerShape(length=500, heads=6, kv_heads=2, head_dim=64, block_size=64, dtype="float32")
    ready = prepare(bench_method(f"recorded:{PROFILE}", None), shape, (3, 5), CPU)
    engine = ready.engine(ReferenceKernels())
    x = random_inputs(shape, CPU, seed=0)
    engine.begin(q_len=500, kv_len=500)
    for number, layer in enumerate((3, 5)):
        out = engine.attend(layer=layer, q=x.q, k=x.k, v=x.v, scale=x.scale)
        mask = read_recorded(PROFILE).of_layer(number, 2, x.grid, heads=6, device=CPU)
        expected, _ = oracle.attention(x.q, x.k, x.v, mask, x.grid, x.scale)
        assert torch.allclose(out.double(), expected, atol=1e-5)
    totals = engine.report.summary().totals
    assert totals.estimation == 0
