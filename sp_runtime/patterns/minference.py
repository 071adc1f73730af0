"""MInference: a fixed pattern for every head, chosen offline, filled in online.

Source: MInference (arXiv 2407.02490) and the authors' code. Parameters, per head, from the profile:
A-shape (sink, window), (100, 800) in the search; vertical-slash with v columns and s diagonals,
(30, 800), (100, 750), (500, 700), (3500, 100) in the search, (1000, 6096) in published files;
block-sparse, the top 100 blocks of 64 tokens by pooled queries and keys. min_tokens and block
size are the operating point's and the profile's.

Where this differs: v and s count whole blocks of columns and diagonals, rounded up, so that a
pattern's cost is fixed by its sizes, where the authors take single tokens and then the blocks that
these touch; `slash_cover=both` covers every token of a chosen diagonal. The estimate is that of the
last block of queries (the authors take the last 64). Block 0 and the diagonal are kept and count
first; the authors keep the first and the last 30 tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sp_runtime.kernels.base import LastBlockEstimate
from sp_runtime.operating_point import OperatingPoint, SlashCover
from sp_runtime.patterns.base import Decision, LayerInputs
from sp_runtime.patterns.cost import last_block_cost, pooled_cost
from sp_runtime.patterns.head_tables import HeadTables, LayerShapes, ShapeGroup
from sp_runtime.patterns.streaming import sink_window_mask
from sp_runtime.patterns.top_k import top_causal_blocks
from sp_runtime.patterns.vertical_slash import cross_mask, select_heads
from sp_runtime.pooling import pooled_map

if TYPE_CHECKING:
    from sp_runtime.profile import HeadShape


def whole_blocks(tokens: Tensor, block_size: int) -> Tensor:
    """Sizes in tokens, int64, as blocks: rounded up, at least 1."""
    return ((tokens + block_size - 1) // block_size).clamp(min=1)


def a_shape_mask(inputs: LayerInputs, group: ShapeGroup) -> Tensor:
    """bool [B, S, R, C]: sink and local window of every head."""
    mask = sink_window_mask(inputs.grid, group.vertical, group.slash)
    return mask.expand(inputs.batch, -1, -1, -1)


def fixed_vertical_slash_mask(
    inputs: LayerInputs, estimate: LastBlockEstimate, group: ShapeGroup, cover: SlashCover
) -> Tensor:
    """bool [B, S, R, C]: the v best columns and s best diagonals; estimate of all heads."""
    block_size = inputs.grid.block_size
    lead = (inputs.batch, -1)
    return cross_mask(
        select_heads(estimate, group.heads),
        inputs.grid,
        num_columns=whole_blocks(group.vertical, block_size).expand(lead),
        num_diagonals=whole_blocks(group.slash, block_size).expand(lead),
        slash_cover=cover,
    )


def block_sparse_mask(inputs: LayerInputs, group: ShapeGroup) -> Tensor:
    """bool [B, S, R, C]: the best blocks of every row by pooled queries and keys."""
    pooled = pooled_map(inputs.q, inputs.k, inputs.grid, scale=inputs.scale, heads=group.heads)
    return top_causal_blocks(
        pooled, inputs.grid, whole_blocks(group.vertical, inputs.grid.block_size)
    )


@dataclass(frozen=True, kw_only=True)
class MInferencePattern:
    """Every head its pattern from the profile."""

    point: OperatingPoint
    tables: HeadTables[HeadShape, LayerShapes]

    def decide(self, inputs: LayerInputs) -> Decision:
        grid, shapes = inputs.grid, self.tables.layer(inputs)
        lead = (inputs.batch, inputs.num_heads)
        device = inputs.q.device
        mask = torch.zeros(*lead, grid.num_rows, grid.num_cols, dtype=torch.bool, device=device)
        cost = torch.zeros(lead, device=device)
        if shapes.a_shape is not None:
            mask.index_copy_(1, shapes.a_shape.heads, a_shape_mask(inputs, shapes.a_shape))
        if shapes.vertical_slash is not None:
            estimate = inputs.kernels.last_block(inputs.q, inputs.k, grid, scale=inputs.scale)
            crossed = fixed_vertical_slash_mask(
                inputs, estimate, shapes.vertical_slash, self.point.slash_cover
            )
            mask.index_copy_(1, shapes.vertical_slash.heads, crossed)
            cost += last_block_cost(grid)  # the estimate is made for the whole layer
        if shapes.block_sparse is not None:
            heads = shapes.block_sparse.heads
            mask.index_copy_(1, heads, block_sparse_mask(inputs, shapes.block_sparse))
            more = torch.full((inputs.batch, len(heads)), pooled_cost(grid), device=device)
            cost.index_add_(1, heads, more)
        return Decision(
            mask=mask,
            dense=torch.zeros(lead, dtype=torch.bool, device=device),
            branch=shapes.branch.expand(lead),
            mass_heads=None,
            cost=cost,
        )

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        """Nothing passes from layer to layer."""
