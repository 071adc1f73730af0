"""FlexPrefill: each head query-aware or vertical-slash, with a budget that follows its attention.

Source: FlexPrefill (arXiv 2502.20766), Algorithms 1 to 4.

Parameters, with the paper's values: gamma 0.95 (0.9 for Qwen2 and Yi), kappa = its tau 0.1,
min_budget 1024 tokens, max_budget none (its appendix F.6 tries 8k to 32k), block size 128. The
first and the last causal key block of every row are kept.

Where this differs: a vertical-slash head gets at least min_budget and at most max_budget tokens of
columns and as many of diagonals; a query-aware head is united with the vertical-slash of exactly
min_budget, and max_budget, which the paper defines for a head without saying how, bounds the
blocks of each of its rows before that union. `slash_cover=one` is the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.cost import last_block_cost, pooled_cost
from sp_runtime.patterns.pooling import pooled_map
from sp_runtime.patterns.query_aware import is_query_aware, query_aware_mask
from sp_runtime.patterns.top_k import top_causal_blocks
from sp_runtime.patterns.vertical_slash import (
    budget_blocks,
    minimum_vertical_slash_mask,
    vertical_slash_at,
)


@dataclass(frozen=True, kw_only=True)
class FlexPrefillPattern:
    """Query-aware where the pooled estimate of the last block row is close to the exact one.

    `point.kappa` 0 makes every head vertical-slash, 1 query-aware.
    """

    point: OperatingPoint

    def decide(self, inputs: LayerInputs) -> Decision:
        point, grid = self.point, inputs.grid
        estimate = inputs.kernels.last_block(inputs.q, inputs.k, grid, scale=inputs.scale)
        vertical_slash = vertical_slash_at(point, inputs.kernels, estimate, grid)
        minimum = minimum_vertical_slash_mask(
            inputs.kernels,
            estimate,
            grid,
            min_budget=point.min_budget,
            slash_cover=point.slash_cover,
        )
        query_aware = self._query_aware(inputs) | minimum
        chosen = is_query_aware(inputs, estimate, point.kappa)
        branch = torch.where(chosen, Branch.QUERY_AWARE.value, Branch.VERTICAL_SLASH.value)
        cost = last_block_cost(grid) + pooled_cost(grid)
        return Decision(
            mask=torch.where(chosen[..., None, None], query_aware, vertical_slash),
            dense=torch.zeros_like(chosen),
            branch=branch.to(torch.uint8),
            mass_heads=None,
            cost=torch.full_like(chosen, cost, dtype=torch.float32),
        )

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        """Nothing passes from layer to layer."""

    def _query_aware(self, inputs: LayerInputs) -> Tensor:
        """bool [B, H, R, C], the forced blocks among them."""
        point, grid = self.point, inputs.grid
        mask = query_aware_mask(
            inputs.kernels, inputs.q, inputs.k, grid, gamma=point.gamma, scale=inputs.scale
        )
        if point.max_budget is None:
            return mask
        pooled = pooled_map(inputs.q, inputs.k, grid, scale=inputs.scale)
        count = budget_blocks(point.max_budget, grid.block_size)
        return mask & top_causal_blocks(pooled, grid, count)
