"""Vertical-slash: columns and diagonals of blocks chosen from the last-block estimate.

Source: FlexPrefill (arXiv 2502.20766), Algorithm 3; MInference's vertical-and-slash pattern.
Parameters, with the paper's values: gamma 0.95 (0.9 for Qwen2 and Yi; here 0.9), min_budget 1024
tokens, no max_budget; the estimate is that of the last block of queries.

Where this differs: counts of columns and diagonals are those of the authors' code, in whole blocks;
`slash_cover=both` covers every token of a chosen diagonal, as the paper's token-level algorithm
does, and `one` switches on one block diagonal, as their code does.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.base import Kernels, LastBlockEstimate
from sp_runtime.operating_point import OperatingPoint, SlashCover
from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.cost import last_block_cost
from sp_runtime.patterns.decision import uniform_decision
from sp_runtime.selection import budget_blocks, cross_mask, vertical_slash_masks

__all__ = [
    "VerticalSlashPattern",
    "budget_blocks",
    "cross_mask",
    "minimum_vertical_slash_mask",
    "select_heads",
    "vertical_slash_at",
    "vertical_slash_masks",
]


def vertical_slash_at(
    point: OperatingPoint,
    kernels: Kernels,
    estimate: LastBlockEstimate,
    grid: BlockGrid,
    *,
    gamma: float | Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """`Kernels.vertical_slash` with the settings of an operating point; gamma None: the point's."""
    return kernels.vertical_slash(
        estimate,
        grid,
        gamma=point.gamma if gamma is None else gamma,
        min_budget=point.min_budget,
        max_budget=point.max_budget,
        slash_cover=point.slash_cover,
        out=out,
    )


def minimum_vertical_slash_mask(
    kernels: Kernels,
    estimate: LastBlockEstimate,
    grid: BlockGrid,
    *,
    min_budget: int,
    slash_cover: SlashCover,
) -> Tensor:
    """`Kernels.vertical_slash` at exactly the minimum budget of columns and diagonals."""
    return kernels.vertical_slash(
        estimate,
        grid,
        gamma=1.0,
        min_budget=min_budget,
        max_budget=min_budget,
        slash_cover=slash_cover,
    )


def select_heads(estimate: LastBlockEstimate, heads: Tensor) -> LastBlockEstimate:
    """The estimate of some heads, int64 [S]."""
    return LastBlockEstimate(
        vertical=estimate.vertical.index_select(1, heads),
        slash=estimate.slash.index_select(1, heads),
        sums=None if estimate.sums is None else estimate.sums.index_select(2, heads),
    )


@dataclass(frozen=True, kw_only=True)
class VerticalSlashPattern:
    """Every head vertical-slash at `point.gamma`."""

    point: OperatingPoint

    def decide(self, inputs: LayerInputs) -> Decision:
        estimate = inputs.kernels.last_block(inputs.q, inputs.k, inputs.grid, scale=inputs.scale)
        mask = vertical_slash_at(self.point, inputs.kernels, estimate, inputs.grid)
        return uniform_decision(
            inputs, mask, branch=Branch.VERTICAL_SLASH, cost=last_block_cost(inputs.grid)
        )

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        """Nothing passes from layer to layer."""
