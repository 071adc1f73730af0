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

from sp_runtime.kernels.base import BlockMeans
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Decision, LayerInputs
from sp_runtime.patterns.cost import last_block_cost, pooled_cost
from sp_runtime.patterns.query_aware import (
    add_query_aware,
    by_choice,
    is_query_aware,
    query_aware_branch,
)
from sp_runtime.patterns.top_k import top_causal_blocks
from sp_runtime.patterns.vertical_slash import budget_blocks, vertical_slash_at
from sp_runtime.pooling import pooled_map


@dataclass(frozen=True, kw_only=True)
class FlexPrefillPattern:
    """Query-aware where the pooled estimate of the last block row is close to the exact one.

    `point.kappa` 0 makes every head vertical-slash, 1 query-aware.
    """

    point: OperatingPoint

    def decide(self, inputs: LayerInputs) -> Decision:
        point, grid, kernels = self.point, inputs.grid, inputs.kernels
        lead, device, full = tuple(inputs.q.shape[:2]), inputs.q.device, inputs.constants.full
        estimate = kernels.last_block(inputs.q, inputs.k, grid, scale=inputs.scale)
        means = kernels.pool(inputs.q, inputs.k, grid)
        chosen = is_query_aware(inputs, means, estimate, point.kappa)
        # At gamma 0, the vertical-slash of exactly min_budget.
        level = by_choice(inputs, chosen, 0.0, point.gamma)
        mask = vertical_slash_at(point, kernels, estimate, grid, gamma=level)
        if point.max_budget is None:
            add_query_aware(inputs, means, chosen, mask, gamma=point.gamma)
        else:
            mask |= self._within_budget(inputs, means, point.max_budget) & chosen[..., None, None]
        cost = last_block_cost(grid) + pooled_cost(grid)
        return Decision(
            mask=mask,
            dense=full(lead, False, torch.bool, device),
            branch=query_aware_branch(inputs, chosen),
            mass_heads=None,
            cost=full(lead, cost, torch.float32, device),
        )

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        """Nothing passes from layer to layer."""

    def _within_budget(self, inputs: LayerInputs, means: BlockMeans, max_budget: int) -> Tensor:
        """bool [B, H, R, C]: the query-aware choice among the largest blocks of each row."""
        grid, scale = inputs.grid, inputs.scale
        mask = inputs.kernels.query_aware(means, grid, gamma=self.point.gamma, scale=scale)
        pooled = pooled_map(inputs.q, inputs.k, grid, scale=scale)
        return mask & top_causal_blocks(pooled, grid, budget_blocks(max_budget, grid.block_size))
