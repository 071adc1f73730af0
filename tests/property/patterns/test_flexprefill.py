"""FlexPrefill, Algorithms 1 to 4, against a literal transcription, and its budgets."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Branch, LayerInputs
from sp_runtime.patterns.flexprefill import FlexPrefillPattern

SCALE = 0.25


@st.composite
def grids(draw: st.DrawFn) -> BlockGrid:
    kv_len = draw(st.integers(1, 500))
    return BlockGrid(
        q_len=draw(st.integers(1, kv_len)),
        kv_len=kv_len,
        block_size=draw(st.sampled_from([64, 128])),
    )


def tensors(grid: BlockGrid, seed: int, sharpness: float) -> tuple[torch.Tensor, torch.Tensor]:
    """q [2, 4, Nq, 16] and k [2, 2, Nk, 16]; keys drift slowly, so that pooling sees something."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(2, 4, grid.q_len, 16, generator=generator) * sharpness
    k = torch.randn(2, 2, grid.kv_len, 16, generator=generator)
    drift = torch.randn(2, 2, grid.num_cols, 16, generator=generator)
    k = k + 2 * drift.repeat_interleave(grid.block_size, dim=2)[:, :, : grid.kv_len]
    return q + torch.randn(2, 4, 1, 16, generator=generator) * sharpness, k


def inputs_of(q: torch.Tensor, k: torch.Tensor, grid: BlockGrid) -> LayerInputs:
    return LayerInputs(layer=0, q=q, k=k, grid=grid, scale=SCALE, kernels=ReferenceKernels())


@settings(max_examples=40)
@given(
    grid=grids(),
    seed=st.integers(0, 2**31),
    sharpness=st.sampled_from([0.1, 1.0, 4.0]),
    kappa=st.sampled_from([0.0, 0.05, 0.2, 1.0]),
    cover=st.sampled_from(["one", "both"]),
    max_budget=st.sampled_from([None, 64, 128]),
)
def test_equals_the_literal_algorithms(
    literal, grid, seed, sharpness, kappa, cover, max_budget
) -> None:
    q, k = tensors(grid, seed, sharpness)
    point = OperatingPoint(
        method="flexprefill",
        gamma=0.8,
        kappa=kappa,
        min_budget=64,
        max_budget=max_budget,
        slash_cover=cover,
    )
    decision = FlexPrefillPattern(point=point).decide(inputs_of(q, k, grid))
    assert not decision.dense.any()
    assert decision.mass_heads is None
    for b in range(2):
        for h in range(4):
            qh, kh = q[b, h].numpy(), k[b, h // 2].numpy()
            # Algorithm 2: the pooled estimate of the last block row against the exact one.
            vertical, slash = literal.last_block(literal.attention(qh, kh, SCALE), grid.block_size)
            pooled = literal.pooled_row(qh, kh, grid, SCALE)
            distance = literal.sqrt_jsd(pooled, literal.bins(vertical, grid))
            if abs(distance - kappa) < 2e-3:
                continue  # float32 cannot tell
            if distance < kappa:  # Algorithm 4, united with the minimum budget
                expected = literal.query_aware(qh, kh, grid, 0.8, SCALE)
                if max_budget is not None:
                    expected &= best_of_rows(literal, qh, kh, grid, max_budget)
                expected |= literal.minimum(vertical, slash, grid, 64, cover)
            else:  # Algorithm 3 between its budgets
                expected = literal.vertical_slash(
                    vertical, slash, grid, gamma=0.8, min_budget=64, max_budget=max_budget,
                    cover=cover,
                )  # fmt: skip
            branch = Branch.QUERY_AWARE if distance < kappa else Branch.VERTICAL_SLASH
            assert decision.branch[b, h] == branch
            np.testing.assert_array_equal(decision.mask[b, h].numpy(), expected)


def best_of_rows(literal, q: np.ndarray, k: np.ndarray, grid: BlockGrid, tokens: int) -> np.ndarray:
    """In each row the forced blocks and then the best pooled ones, `tokens` in all."""
    keys = literal.key_means(k, grid)
    mask = np.zeros((grid.num_rows, grid.num_cols), dtype=bool)
    for row, span in enumerate(literal.rows(grid)):
        diagonal = grid.first_row + row
        worth = keys[: diagonal + 1] @ q.astype(np.float64)[span.start : span.stop].mean(0)
        order = sorted(range(diagonal + 1), key=lambda c: (c not in (0, diagonal), -worth[c], c))
        mask[row, order[: math.ceil(tokens / grid.block_size)]] = True
        mask[row, [0, diagonal]] = True
    return mask


def test_first_and_last_key_block_of_every_row_are_kept() -> None:
    grid = BlockGrid(q_len=400, kv_len=700, block_size=64)
    q, k = tensors(grid, 3, 8.0)
    for kappa in (0.0, 1.0):
        point = OperatingPoint(method="flexprefill", gamma=0.01, min_budget=1, kappa=kappa)
        mask = FlexPrefillPattern(point=point).decide(inputs_of(q, k, grid)).mask
        assert mask[..., 0].all()
        assert mask[:, :, grid.diagonal_mask()].all()


@pytest.mark.parametrize("kappa", [0.0, 1.0])
def test_budgets_bound_what_a_row_computes(kappa: float) -> None:
    grid = BlockGrid(q_len=1280, kv_len=1280, block_size=64)
    q, k = tensors(grid, 5, 0.2)  # flat attention: gamma 1 wants every block

    def blocks(**budgets: int) -> torch.Tensor:
        point = OperatingPoint(
            method="flexprefill", gamma=1.0, kappa=kappa, slash_cover="one", **budgets
        )
        return FlexPrefillPattern(point=point).decide(inputs_of(q, k, grid)).mask.sum(-1)

    causal = torch.arange(1, 21)
    assert torch.equal(blocks(min_budget=64), causal.expand(2, 4, 20))
    # Columns and diagonals (or chosen blocks, one column and one diagonal) of three blocks.
    assert (blocks(min_budget=64, max_budget=192) <= 6).all()
    few = OperatingPoint(
        method="flexprefill", gamma=0.001, kappa=kappa, min_budget=256, slash_cover="one"
    )
    least = FlexPrefillPattern(point=few).decide(inputs_of(q, k, grid)).mask.sum(-1)
    assert (least[..., -1] >= 4).all()  # every chosen column lies before the last row
