"""LM-Infinite, InfLLM, HiP and MoA: block masks to our own definitions, read out in loops."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.operating_point import OperatingPoint, default_point
from sp_runtime.patterns.base import LayerInputs
from sp_runtime.patterns.head_tables import window_tables
from sp_runtime.patterns.hip import HipPattern, hip_mask, tree_widths
from sp_runtime.patterns.infllm import InfLlmPattern, infllm_mask
from sp_runtime.patterns.lm_infinite import LmInfinitePattern
from sp_runtime.patterns.moa import MoaPattern
from sp_runtime.patterns.streaming import StreamingPattern
from sp_runtime.profile import HeadWindow, WindowTable

HEADS = 4


@st.composite
def grids(draw: st.DrawFn) -> BlockGrid:
    kv_len = draw(st.integers(1, 1200))
    return BlockGrid(
        q_len=draw(st.integers(1, kv_len)),
        kv_len=kv_len,
        block_size=draw(st.sampled_from([64, 128])),
    )


def whole_numbers(grid: BlockGrid, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """q [1, 4, Nq, 16] and k [1, 2, Nk, 16] of small whole numbers: float32 sums are exact."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randint(-2, 3, shape, generator=generator).float()

    lean = draw(1, 2, grid.num_cols, 16).repeat_interleave(grid.block_size, dim=2)
    k = draw(1, 2, grid.kv_len, 16) + lean[:, :, : grid.kv_len]
    return draw(1, HEADS, grid.q_len, 16) + draw(1, HEADS, 1, 16), k


def inputs_of(q: torch.Tensor, k: torch.Tensor, grid: BlockGrid) -> LayerInputs:
    return LayerInputs(layer=0, q=q, k=k, grid=grid, scale=0.25, kernels=ReferenceKernels())


def mean_queries(literal, q: np.ndarray, grid: BlockGrid) -> list[np.ndarray]:
    q = q.astype(np.float64)
    return [q[span.start : span.stop].mean(0) for span in literal.rows(grid)]


def literal_near(grid: BlockGrid, row: int, sink: int, window: int) -> set[int]:
    """Blocks of the sink and of the window of any query of an absolute block row."""
    size = grid.block_size
    near = {0, row} | {c for c in range(row + 1) if c * size < sink}
    furthest = row * size - window + 1  # of the first query of the row
    return near | {c for c in range(row + 1) if (c + 1) * size - 1 >= furthest}


def literal_infllm(
    literal, q: np.ndarray, k: np.ndarray, grid: BlockGrid, *, sink: int, window: int, top_k: int
) -> np.ndarray:
    k, size = k.astype(np.float64), grid.block_size
    mask = np.zeros((grid.num_rows, grid.num_cols), dtype=bool)
    for number, query in enumerate(mean_queries(literal, q, grid)):
        row = grid.first_row + number
        near = literal_near(grid, row, sink, window)
        worth = {}
        for col in sorted({*range(row)} - near):
            block = k[col * size : (col + 1) * size]
            far = ((block - block.mean(0)) ** 2).sum(-1)
            chosen = sorted(range(size), key=lambda j: (-far[j], j))[:4]
            worth[col] = max(float(block[j] @ query) for j in chosen)
        best = sorted(worth, key=lambda c: (-worth[c], c))[: math.ceil(top_k / size)]
        mask[number, sorted({*near, *best})] = True
    return mask


@settings(max_examples=40)
@given(
    grid=grids(),
    seed=st.integers(0, 2**31),
    sink=st.sampled_from([0, 1, 130]),
    window=st.sampled_from([1, 65, 200]),
    top_k=st.sampled_from([1, 128, 200, 5000]),
)
def test_infllm_is_sink_window_and_the_best_past_blocks(
    literal, grid, seed, sink, window, top_k
) -> None:
    q, k = whole_numbers(grid, seed)
    found = infllm_mask(q, k, grid, sink=sink, window=window, top_k=top_k)
    for head in (0, 3):
        expected = literal_infllm(
            literal, q[0, head].numpy(), k[0, head // 2].numpy(), grid,
            sink=sink, window=window, top_k=top_k,
        )  # fmt: skip
        np.testing.assert_array_equal(found[0, head].numpy(), expected)


def literal_hip(
    literal, q: np.ndarray, k: np.ndarray, grid: BlockGrid, *, top_k: int
) -> np.ndarray:
    """Nodes are (first block, width); halves of those kept compete, the forced ones first."""
    size, count = grid.block_size, math.ceil(top_k / grid.block_size)
    width = 1
    while math.ceil(grid.num_cols / width) > count:
        width *= 2
    mask = np.zeros((grid.num_rows, grid.num_cols), dtype=bool)
    for number, query in enumerate(mean_queries(literal, q, grid)):
        row = grid.first_row + number
        nodes, wide = list(range(0, grid.num_cols, width)), width
        while wide > 1:
            wide //= 2
            halves = sorted(n for node in nodes for n in (node, node + wide) if n <= row)
            worth = {}
            for node in halves:
                if node == 0 or node <= row < node + wide:
                    worth[node] = math.inf
                else:
                    worth[node] = float(
                        k.astype(np.float64)[node * size + wide * size // 2] @ query
                    )
            nodes = sorted(halves, key=lambda n: (-worth[n], n))[:count]
        mask[number, [n for n in {*nodes, 0, row} if n <= row]] = True
    return mask


@settings(max_examples=40)
@given(
    grid=grids(),
    seed=st.integers(0, 2**31),
    top_k=st.sampled_from([1, 64, 128, 300, 512, 5000]),
)
def test_hip_refines_a_tree_down_to_single_blocks(literal, grid, seed, top_k) -> None:
    q, k = whole_numbers(grid, seed)
    found = hip_mask(q, k, grid, top_k=top_k)
    for head in (0, 3):
        expected = literal_hip(
            literal, q[0, head].numpy(), k[0, head // 2].numpy(), grid, top_k=top_k
        )
        np.testing.assert_array_equal(found[0, head].numpy(), expected)
    most = max(math.ceil(top_k / grid.block_size), 2)
    assert (found.sum(-1) <= most).all()


def test_hip_finds_a_block_that_stands_out_at_every_level() -> None:
    grid = BlockGrid(q_len=1024, kv_len=1024, block_size=64)
    q, k = torch.ones(1, 1, 1024, 4), torch.zeros(1, 1, 1024, 4)
    for block in (4, 5, 6, 7):  # the nodes above block 5 have their middles here
        k[:, :, block * 64 : (block + 1) * 64] = 1.0
    k[:, :, 5 * 64 : 6 * 64] = 9.0
    found = hip_mask(q, k, grid, top_k=192)[0, 0]
    assert found[15].nonzero().flatten().tolist() == [0, 5, 15]
    assert tree_widths(16, 3) == (4, 2, 1)
    assert tree_widths(16, 16) == ()


def test_costs_count_the_products_with_representatives() -> None:
    grid = BlockGrid(q_len=640, kv_len=640, block_size=64)  # 10 blocks, 55 causal
    q, k = whole_numbers(grid, 0)
    point = default_point("infllm")
    assert (InfLlmPattern(point=point).decide(inputs_of(q, k, grid)).cost == 4 * 55 / 64).all()
    point = OperatingPoint(method="hip", top_k=128)
    cost = HipPattern(point=point).decide(inputs_of(q, k, grid)).cost
    assert (cost == 10 * (3 + 5 + 10) / 64).all()  # from two nodes of 8: widths 4, 2, 1
    assert (LmInfinitePattern(point=point).decide(inputs_of(q, k, grid)).cost == 0).all()


@settings(max_examples=20)
@given(grid=grids(), sink=st.integers(0, 300), window=st.integers(1, 500))
def test_the_lambda_mask_is_that_of_streaming(grid, sink, window) -> None:
    q, k = whole_numbers(grid, 0)
    point = OperatingPoint(method="lm_infinite", sink=sink, window=window)
    found = LmInfinitePattern(point=point).decide(inputs_of(q, k, grid))
    same = StreamingPattern(point=point).decide(inputs_of(q, k, grid))
    assert torch.equal(found.mask, same.mask)
    for number in range(grid.num_rows):
        near = literal_near(grid, grid.first_row + number, sink, window)
        assert {*found.mask[0, 0, number].nonzero().flatten().tolist()} == near


@settings(max_examples=30)
@given(
    grid=grids(),
    alphas=st.lists(st.integers(0, 600), min_size=HEADS, max_size=HEADS),
    betas=st.lists(st.integers(0, 1000), min_size=HEADS, max_size=HEADS),
    sink=st.integers(0, 200),
)
def test_moa_windows_grow_with_the_prompt(grid, alphas, betas, sink) -> None:
    heads = tuple(
        HeadWindow(layer=0, head=n, alpha=alpha, beta=beta / 1000, mass=1.0)
        for n, (alpha, beta) in enumerate(zip(alphas, betas, strict=True))
    )
    table = WindowTable(source="test", density=1.0, sink=sink, heads=heads)
    q, k = whole_numbers(grid, 0)
    found = MoaPattern(sink=sink, tables=window_tables(table)).decide(inputs_of(q, k, grid)).mask
    for n, (alpha, beta) in enumerate(zip(alphas, betas, strict=True)):
        window = max(1, alpha + math.ceil(beta * grid.kv_len / 1000))
        for number in range(grid.num_rows):
            near = literal_near(grid, grid.first_row + number, sink, window)
            assert {*found[0, n, number].nonzero().flatten().tolist()} == near


@pytest.mark.parametrize("method", ["infllm", "hip"])
def test_half_precision_keys_are_compared_in_float32(method: str) -> None:
    grid = BlockGrid(q_len=900, kv_len=900, block_size=64)
    q, k = whole_numbers(grid, 1)
    point = dataclasses.replace(default_point(method), window=64, top_k=256)
    pattern = {"infllm": InfLlmPattern, "hip": HipPattern}[method](point=point)
    full = pattern.decide(inputs_of(q, k, grid)).mask
    half = pattern.decide(inputs_of(q.bfloat16(), k.bfloat16(), grid)).mask
    assert torch.equal(full, half)
