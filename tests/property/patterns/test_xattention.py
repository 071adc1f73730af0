"""XAttention against a slow float64 transcription, the bound on its memory, and its cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_runtime.block_index import BlockGrid
from sp_runtime.patterns import xattention
from sp_runtime.patterns.cost import antidiagonal_cost
from sp_runtime.patterns.xattention import antidiagonal_mass

SCALE = 0.25


def literal_mass(
    q: np.ndarray, k: np.ndarray, grid: BlockGrid, stride: int, scale: float
) -> np.ndarray:
    """One head, [R, C]: the share of each key block in the strided attention of a block row.

    In each stride x stride cell of the score matrix the antidiagonal entries are summed; divided
    by sqrt(d) * stride; causal softmax over the cells of a row; summed into blocks; mean over the
    rows of cells of a block row.
    """
    offset, size = grid.q_offset, grid.block_size
    scores = q.astype(np.float64) @ k.astype(np.float64).T * scale
    out = np.zeros((grid.num_rows, grid.num_cols))
    count = np.zeros(grid.num_rows)
    for cell_row in range(offset // stride, -(-grid.kv_len // stride)):
        cells = np.zeros(cell_row + 1)
        for cell in range(cell_row + 1):
            for step in range(stride):
                i, j = cell_row * stride + step, cell * stride + stride - 1 - step
                if offset <= i < grid.kv_len and j < grid.kv_len:
                    cells[cell] += scores[i - offset, j] / stride
        weights = np.exp(cells - cells.max())
        row = cell_row * stride // size - grid.first_row
        count[row] += 1
        for cell, weight in enumerate(weights / weights.sum()):
            out[row, cell * stride // size] += weight
    return out / count[:, None]


def literal_choice(mass: np.ndarray, grid: BlockGrid, tau: float) -> np.ndarray:
    """The fewest blocks of each row that reach tau, then the first block and the diagonal."""
    mask = np.zeros(mass.shape, dtype=bool)
    for row in range(grid.num_rows):
        total = 0.0
        diagonal = grid.first_row + row
        for col in sorted(range(diagonal + 1), key=lambda c: (-mass[row, c], c)):
            mask[row, col] = True
            total += mass[row, col]
            if tau < 1 and total >= tau:
                break
        mask[row, 0] = mask[row, diagonal] = True
    return mask


def margin(mass: np.ndarray, grid: BlockGrid, tau: float) -> float:
    """How far float32 may be off before it chooses other blocks: in sums and between neighbours."""
    nearest = 1.0
    for row in range(grid.num_rows):
        shares = np.sort(mass[row, : grid.first_row + row + 1])[::-1]
        nearest = min(nearest, np.abs(shares.cumsum()[:-1] - tau).min(initial=1.0))
        nearest = min(nearest, np.abs(np.diff(shares)).min(initial=1.0))
    return nearest


@settings(max_examples=25)
@given(
    length=st.integers(1, 300),
    chunk=st.floats(0, 1),
    block_size=st.sampled_from([64, 128]),
    stride=st.sampled_from([4, 8, 16]),
    seed=st.integers(0, 2**31),
    sharpness=st.sampled_from([0.0, 1.0, 6.0]),
)
def test_mass_equals_the_literal_algorithm(
    length, chunk, block_size, stride, seed, sharpness
) -> None:
    q_len = max(1, round(chunk * length))
    grid = BlockGrid(q_len=q_len, kv_len=length, block_size=block_size)
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 4, q_len, 16, generator=generator) * sharpness
    k = torch.randn(2, 2, length, 16, generator=generator)
    mass = antidiagonal_mass(q, k, grid, stride=stride, scale=SCALE)
    torch.testing.assert_close(mass.sum(-1), torch.ones(2, 4, grid.num_rows))
    for b, h in ((0, 0), (0, 3), (1, 1)):
        expected = literal_mass(q[b, h].numpy(), k[b, h // 2].numpy(), grid, stride, SCALE)
        np.testing.assert_allclose(mass[b, h].numpy(), expected, atol=2e-5)


@settings(max_examples=25)
@given(
    length=st.integers(200, 1500),
    cut=st.integers(1, 1000),
    tau=st.sampled_from([0.3, 0.6, 0.9, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_blocks_equal_the_literal_choice(length, cut, tau, seed, decide_xattention) -> None:
    grid = BlockGrid(q_len=max(1, length - cut), kv_len=length, block_size=64)
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(1, 2, grid.q_len, 16, generator=generator) * 3
    k = torch.randn(1, 1, length, 16, generator=generator)
    drift = torch.randn(1, 1, grid.num_cols, 16, generator=generator)
    k = k + drift.repeat_interleave(64, dim=2)[:, :, :length]
    found = decide_xattention(q, k, grid, tau=tau, stride=16).mask
    for head in range(2):
        mass = literal_mass(q[0, head].numpy(), k[0, 0].numpy(), grid, 16, SCALE)
        if tau < 1 and margin(mass, grid, tau) < 1e-5:
            continue  # float32 cannot tell
        np.testing.assert_array_equal(found[0, head].numpy(), literal_choice(mass, grid, tau))


@pytest.fixture(scope="module")
def decide_xattention():
    from sp_runtime.kernels.reference import ReferenceKernels
    from sp_runtime.operating_point import OperatingPoint
    from sp_runtime.patterns.base import LayerInputs

    def decide(q, k, grid, *, tau: float, stride: int):
        point = OperatingPoint(method="xattention", tau=tau, stride=stride)
        inputs = LayerInputs(layer=0, q=q, k=k, grid=grid, scale=SCALE, kernels=ReferenceKernels())
        return xattention.XAttentionPattern(point=point).decide(inputs)

    return decide


@pytest.mark.parametrize("limit", [1, 3000, 1 << 25])
@pytest.mark.parametrize("q_len", [900, 901, 333])
def test_the_map_does_not_depend_on_how_many_rows_are_made_at_once(
    limit, q_len, monkeypatch
) -> None:
    grid = BlockGrid(q_len=q_len, kv_len=901, block_size=64)
    q, k = torch.randn(1, 4, q_len, 16), torch.randn(1, 2, 901, 16)
    whole = antidiagonal_mass(q, k, grid, stride=8, scale=SCALE)
    made = []
    rows_mass = xattention._rows_mass
    monkeypatch.setattr(xattention, "_MAX_CELLS", limit)
    monkeypatch.setattr(
        xattention, "_rows_mass", lambda *a, **b: made.append(a[3]) or rows_mass(*a, **b)
    )
    parts = antidiagonal_mass(q, k, grid, stride=8, scale=SCALE)
    torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-5)
    cells = -(-901 // 8)
    for rows in made:
        assert len(rows) == 1 or 4 * len(rows) * 8 * cells <= limit


def test_the_map_of_all_cells_is_never_stored() -> None:
    """Meta tensors cost nothing, so the sizes of 128k tokens can be asked for."""
    from torch.utils._python_dispatch import TorchDispatchMode

    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest = max(largest, result.numel())
            return result

    tokens = 1 << 17
    grid = BlockGrid(q_len=tokens, kv_len=tokens, block_size=128)
    q = torch.empty(1, 32, tokens, 128, device="meta", dtype=torch.bfloat16)
    k = torch.empty(1, 8, tokens, 128, device="meta", dtype=torch.bfloat16)
    with Watch():
        mass = antidiagonal_mass(q, k, grid, stride=16, scale=SCALE)
    assert mass.shape == (1, 32, 1024, 1024)
    assert largest <= q.numel()  # the cells alone would be 32 * 8192 * 8192


def test_cost_is_one_product_in_stride(decide_xattention) -> None:
    grid = BlockGrid(q_len=640, kv_len=640, block_size=64)
    q, k = torch.randn(1, 4, 640, 16), torch.randn(1, 2, 640, 16)
    decision = decide_xattention(q, k, grid, tau=0.9, stride=8)
    assert (decision.cost == 0.5 * 55 / 8).all()
    assert antidiagonal_cost(grid, 16) == 0.5 * 55 / 16


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite_and_close(dtype, decide_xattention) -> None:
    """Scores of this size would pass the range of float16 if cells were summed unscaled."""
    grid = BlockGrid(q_len=512, kv_len=512, block_size=64)
    generator = torch.Generator().manual_seed(0)
    q = (torch.randn(1, 2, 512, 64, generator=generator) * 30).to(dtype)
    k = (torch.randn(1, 2, 512, 64, generator=generator) * 30).to(dtype)
    mass = antidiagonal_mass(q, k, grid, stride=16, scale=0.125)
    assert torch.isfinite(mass).all()
    torch.testing.assert_close(mass.sum(-1), torch.ones(1, 2, 8))
