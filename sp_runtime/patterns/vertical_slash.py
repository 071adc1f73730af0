"""Vertical-slash: columns and diagonals of blocks chosen from the last-block estimate.

Source: FlexPrefill (arXiv 2502.20766), Algorithm 3; MInference's vertical-and-slash pattern.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.base import LastBlockEstimate
from sp_runtime.operating_point import OperatingPoint, SlashCover
from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.cost import last_block_cost
from sp_runtime.patterns.decision import uniform_decision
from sp_runtime.patterns.masks import block_sum, sort_descending, top_blocks


def budget_blocks(tokens: int, block_size: int) -> int:
    """A budget in tokens as blocks: rounded up, at least 1."""
    return max(1, -(-tokens // block_size))


def vertical_slash_mask(
    estimate: LastBlockEstimate,
    grid: BlockGrid,
    *,
    gamma: float | Tensor,
    min_budget: int,
    max_budget: int | None,
    slash_cover: SlashCover,
) -> Tensor:
    """The union of the largest columns and diagonals, on every block row of the grid.

    n_v = (number of largest entries of `vertical` whose cumulative sum stays at or under gamma,
    + 1) // block_size + 1 columns, and n_s diagonals from `slash` alike; block 0 and the main
    diagonal are among them.

    Args:
        estimate: vertical and slash, float32 [B, H, N].
        gamma: in (0, 1], a number or float32 broadcastable to [B, H]; 1 counts every entry.
        min_budget, max_budget: bounds of n_v and of n_s in tokens, rounded up to whole blocks, at
            least one; max_budget None is no bound.
        slash_cover: a chosen slash bin o switches on block diagonal o (`one`), or o and o + 1
            (`both`), which hold every token at a distance of bin o.

    Returns:
        bool [B, H, R, C].
    """
    return vertical_slash_masks(
        estimate,
        grid,
        gammas=(gamma,),
        min_budget=min_budget,
        max_budget=max_budget,
        slash_cover=slash_cover,
    )[0]


def vertical_slash_masks(
    estimate: LastBlockEstimate,
    grid: BlockGrid,
    *,
    gammas: Sequence[float | Tensor],
    min_budget: int,
    max_budget: int | None,
    slash_cover: SlashCover,
) -> tuple[Tensor, ...]:
    """`vertical_slash_mask` at several thresholds, with one sort for all of them."""
    low = budget_blocks(min_budget, grid.block_size)
    high = grid.num_cols if max_budget is None else budget_blocks(max_budget, grid.block_size)
    columns = _needed_blocks(estimate.vertical, gammas, grid)
    diagonals = _needed_blocks(estimate.slash, gammas, grid)
    return tuple(
        _cross(
            estimate,
            grid,
            num_columns=num_columns.clamp(min=low).clamp(max=high),
            num_diagonals=num_diagonals.clamp(min=low).clamp(max=high),
            slash_cover=slash_cover,
        )
        for num_columns, num_diagonals in zip(columns, diagonals, strict=True)
    )


def vertical_slash_at(
    point: OperatingPoint,
    estimate: LastBlockEstimate,
    grid: BlockGrid,
    *,
    gamma: float | Tensor | None = None,
) -> Tensor:
    """`vertical_slash_mask` with the settings of an operating point; gamma None: the point's."""
    return vertical_slash_mask(
        estimate,
        grid,
        gamma=point.gamma if gamma is None else gamma,
        min_budget=point.min_budget,
        max_budget=point.max_budget,
        slash_cover=point.slash_cover,
    )


def minimum_vertical_slash_mask(
    estimate: LastBlockEstimate, grid: BlockGrid, *, min_budget: int, slash_cover: SlashCover
) -> Tensor:
    """`vertical_slash_mask` at exactly the minimum budget of columns and diagonals."""
    count = torch.full(
        estimate.vertical.shape[:-1],
        budget_blocks(min_budget, grid.block_size),
        device=estimate.vertical.device,
    )
    return _cross(estimate, grid, num_columns=count, num_diagonals=count, slash_cover=slash_cover)


def select_heads(estimate: LastBlockEstimate, heads: Tensor) -> LastBlockEstimate:
    """The estimate of some heads, int64 [S]."""
    return LastBlockEstimate(
        vertical=estimate.vertical.index_select(1, heads),
        slash=estimate.slash.index_select(1, heads),
    )


@dataclass(frozen=True, kw_only=True)
class VerticalSlashPattern:
    """Every head vertical-slash at `point.gamma`."""

    point: OperatingPoint

    def decide(self, inputs: LayerInputs) -> Decision:
        estimate = inputs.kernels.last_block(inputs.q, inputs.k, inputs.grid, scale=inputs.scale)
        mask = vertical_slash_at(self.point, estimate, inputs.grid)
        return uniform_decision(
            inputs, mask, branch=Branch.VERTICAL_SLASH, cost=last_block_cost(inputs.grid)
        )

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        """Nothing passes from layer to layer."""


def _needed_blocks(
    weights: Tensor, gammas: Sequence[float | Tensor], grid: BlockGrid
) -> list[Tensor]:
    """int64 [B, H] for each gamma, n_v or n_s of weights [B, H, N] before the budgets."""
    reached = sort_descending(weights)[0].cumsum(-1)
    counts = []
    for gamma in gammas:
        # The sum of all entries is 1 but for rounding, which must not drop entries at gamma 1.
        if isinstance(gamma, Tensor):
            spread = gamma.unsqueeze(-1)
            within = (reached <= spread) | (spread >= 1)
        else:
            within = reached <= gamma if gamma < 1 else torch.ones_like(reached, dtype=torch.bool)
        counts.append((within.sum(-1) + 1) // grid.block_size + 1)
    return counts


def _cross(
    estimate: LastBlockEstimate,
    grid: BlockGrid,
    *,
    num_columns: Tensor,
    num_diagonals: Tensor,
    slash_cover: SlashCover,
) -> Tensor:
    """bool [B, H, R, C] from the counts int64 [B, H], forced ones counted."""
    vertical = block_sum(estimate.vertical, grid)
    slash = block_sum(estimate.slash, grid)
    vertical[..., 0] = torch.inf
    slash[..., 0] = torch.inf
    columns = top_blocks(vertical, num_columns)
    diagonals = top_blocks(slash, num_diagonals)
    if slash_cover == "both":
        diagonals[..., 1:] |= diagonals[..., :-1].clone()
    device = columns.device
    rows = torch.arange(grid.first_row, grid.num_cols, device=device)
    distance = rows[:, None] - torch.arange(grid.num_cols, device=device)  # [R, C] in blocks
    on_diagonal = diagonals.index_select(-1, distance.clamp(min=0).flatten())
    mask = on_diagonal.unflatten(-1, distance.shape) | columns.unsqueeze(-2)
    return mask & (distance >= 0)
