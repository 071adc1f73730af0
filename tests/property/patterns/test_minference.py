"""MInference's three patterns against literal transcriptions, head by head."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import ProfileMismatchError
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Branch, LayerInputs
from sp_runtime.patterns.head_tables import shape_tables
from sp_runtime.patterns.minference import MInferencePattern
from sp_runtime.profile import HeadShape, ShapeTable

SCALE, HEADS = 0.25, 4
SIZES = st.sampled_from([1, 30, 64, 100, 129, 500, 3500])


@st.composite
def grids(draw: st.DrawFn) -> BlockGrid:
    kv_len = draw(st.integers(1, 600))
    return BlockGrid(
        q_len=draw(st.integers(1, kv_len)),
        kv_len=kv_len,
        block_size=draw(st.sampled_from([64, 128])),
    )


@st.composite
def shapes(draw: st.DrawFn) -> tuple[HeadShape, ...]:
    found = []
    for head in range(HEADS):
        kind = draw(st.sampled_from(["a_shape", "vertical_slash", "block_sparse"]))
        slash = 0 if kind == "block_sparse" else draw(SIZES)
        found.append(
            HeadShape(layer=0, head=head, kind=kind, vertical=draw(SIZES), slash=slash, score=0.5)
        )
    return tuple(found)


def inputs_of(grid: BlockGrid, seed: int, layer: int = 0) -> LayerInputs:
    generator = torch.Generator().manual_seed(seed)
    q = 2 * torch.randn(2, HEADS, grid.q_len, 16, generator=generator)
    q = q + torch.randn(2, HEADS, 1, 16, generator=generator)
    k = torch.randn(2, 2, grid.kv_len, 16, generator=generator)
    lean = torch.randn(2, 2, grid.num_cols, 16, generator=generator)
    k = k + lean.repeat_interleave(grid.block_size, dim=2)[:, :, : grid.kv_len]
    return LayerInputs(layer=layer, q=q, k=k, grid=grid, scale=SCALE, kernels=ReferenceKernels())


def pattern_of(heads: tuple[HeadShape, ...], cover: str = "both") -> MInferencePattern:
    table = ShapeTable(source="test", heads=heads)
    point = OperatingPoint(method="minference", slash_cover=cover)
    return MInferencePattern(point=point, tables=shape_tables(table))


def literal_a_shape(grid: BlockGrid, sink: int, window: int) -> np.ndarray:
    """The blocks that hold one of the first `sink` tokens, or a token of the window of a query."""
    mask = np.zeros((grid.num_rows, grid.num_cols), dtype=bool)
    size = grid.block_size
    for row in range(grid.num_rows):
        for query in range((grid.first_row + row) * size, (grid.first_row + row + 1) * size):
            near = range(max(0, query - window + 1), query + 1)
            for key in [*range(min(sink, query + 1)), near[0], *near[::size], query]:
                mask[row, key // size] = True
        mask[row, 0] = True
    return mask


def literal_block_sparse(
    literal, q: np.ndarray, k: np.ndarray, grid: BlockGrid, tokens: int
) -> np.ndarray:
    """Top-k of pooled QK in every row; the first block and the diagonal are two of them."""
    keys = literal.key_means(k, grid)
    mask = np.zeros((grid.num_rows, grid.num_cols), dtype=bool)
    for row, span in enumerate(literal.rows(grid)):
        diagonal = grid.first_row + row
        worth = keys[: diagonal + 1] @ q.astype(np.float64)[span.start : span.stop].mean(0)
        order = sorted(range(diagonal + 1), key=lambda c: (c not in (0, diagonal), -worth[c], c))
        mask[row, order[: math.ceil(tokens / grid.block_size)]] = True
        mask[row, [0, diagonal]] = True
    return mask


@settings(max_examples=60)
@given(
    grid=grids(),
    heads=shapes(),
    seed=st.integers(0, 2**31),
    cover=st.sampled_from(["one", "both"]),
)
def test_equals_the_literal_patterns(literal, grid, heads, seed, cover) -> None:
    inputs = inputs_of(grid, seed)
    decision = pattern_of(heads, cover).decide(inputs)
    size = grid.block_size
    for b in range(2):
        for shape in heads:
            q, k = inputs.q[b, shape.head].numpy(), inputs.k[b, shape.head // 2].numpy()
            if shape.kind == "a_shape":
                expected = literal_a_shape(grid, shape.vertical, shape.slash)
            elif shape.kind == "vertical_slash":
                vertical, slash = literal.last_block(literal.attention(q, k, SCALE), size)
                counts = (math.ceil(shape.vertical / size), math.ceil(shape.slash / size))
                expected = literal.cross(vertical, slash, grid, counts, cover)
            else:
                expected = literal_block_sparse(literal, q, k, grid, shape.vertical)
            np.testing.assert_array_equal(decision.mask[b, shape.head].numpy(), expected)


def test_branches_and_costs_are_those_of_the_heads() -> None:
    grid = BlockGrid(q_len=640, kv_len=640, block_size=64)
    kinds = ("a_shape", "vertical_slash", "block_sparse", "a_shape")
    heads = tuple(
        HeadShape(
            layer=0, head=n, kind=kind, vertical=64, slash=64 * (kind != "block_sparse"), score=1
        )
        for n, kind in enumerate(kinds)
    )
    decision = pattern_of(heads).decide(inputs_of(grid, 0))
    assert (
        decision.branch.tolist()
        == [[Branch.A_SHAPE, Branch.VERTICAL_SLASH, Branch.BLOCK_SPARSE, Branch.A_SHAPE]] * 2
    )
    # The last-block estimate is made for the layer as soon as one head asks for it.
    last, pooled = 0.5 * 10, 55 / 64
    assert decision.cost.tolist() == [pytest.approx([last, last, last + pooled, last])] * 2
    plain = tuple(dataclasses.replace(h, kind="a_shape", slash=64) for h in heads)
    assert (pattern_of(plain).decide(inputs_of(grid, 0)).cost == 0).all()


def test_sizes_fix_what_a_pattern_costs() -> None:
    """The same sizes cost the same blocks on any input, but where lines cross."""
    grid = BlockGrid(q_len=1280, kv_len=1280, block_size=64)
    shape = {"layer": 0, "score": 1.0}
    heads = (
        HeadShape(head=0, kind="a_shape", vertical=100, slash=200, **shape),
        HeadShape(head=1, kind="block_sparse", vertical=300, slash=0, **shape),
        HeadShape(head=2, kind="a_shape", vertical=0, slash=1, **shape),
        HeadShape(head=3, kind="block_sparse", vertical=3500, slash=0, **shape),
    )
    counts = Counter(
        tuple(pattern_of(heads).decide(inputs_of(grid, seed)).mask[0].sum((-2, -1)).tolist())
        for seed in range(5)
    )
    causal = [min(row + 1, 5) for row in range(20)]
    ((blocks, times),) = counts.items()
    assert times == 5
    assert blocks[1] == sum(causal)
    assert blocks[3] == grid.num_causal_blocks


def test_heads_that_are_not_the_models_are_refused(examples) -> None:
    grid = BlockGrid(q_len=64, kv_len=64, block_size=64)
    heads = tuple(
        HeadShape(layer=0, head=n, kind="a_shape", vertical=1, slash=1, score=1) for n in range(3)
    )
    with pytest.raises(ProfileMismatchError, match="3 heads in layer 0, the model 4"):
        pattern_of(heads).decide(inputs_of(grid, 0))
    with pytest.raises(ProfileMismatchError, match="0 heads in layer 7"):
        pattern_of(heads).decide(inputs_of(grid, 0, layer=7))
