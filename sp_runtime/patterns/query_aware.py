"""Query-aware: blocks chosen from pooled queries and keys.

Source: FlexPrefill (arXiv 2502.20766), Algorithms 2 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.base import LastBlockEstimate
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.cost import last_block_cost, pooled_cost
from sp_runtime.patterns.masks import block_sum, flat_gamma_masks, forced_blocks, sqrt_jsd
from sp_runtime.patterns.vertical_slash import minimum_vertical_slash_mask, vertical_slash_at


def pooled_estimate(q: Tensor, k: Tensor, grid: BlockGrid, scale: float) -> Tensor:
    """a_bar, float32 [B, H, C]: softmax of the mean of the last queries on the mean key of blocks.

    The last min(block_size, Nq) queries; a ragged last key block is the mean of its own keys.
    """
    last = q[:, :, -min(grid.block_size, grid.q_len) :].mean(-2, dtype=torch.float32)
    keys = _block_means(k, 0, grid.block_size)  # [B, Hkv, C, D]
    grouped = last.unflatten(1, (k.shape[1], -1))  # [B, Hkv, G, D]
    scores = grouped @ keys.transpose(-1, -2) * scale
    return scores.softmax(-1).flatten(1, 2)


def query_aware_mask(
    q: Tensor,
    k: Tensor,
    grid: BlockGrid,
    *,
    gamma: float | Tensor,
    scale: float,
    heads: Tensor | None = None,
) -> Tensor:
    """The largest blocks of the pooled attention map of each head that together reach gamma.

    The map is the causal softmax of block means of queries on block means of keys, flattened and
    normalised; the block with which the sum reaches gamma is kept, and the forced blocks are on.
    FlexPrefill unites it with `minimum_vertical_slash_mask`.

    Args:
        q: [B, H, Nq, D]. k: [B, Hkv, Nk, D].
        gamma: in (0, 1], a number or float32 broadcastable to [B, S].
        heads: int64 [S], the heads wanted; None is all of them.

    Returns:
        bool [B, S, R, C].
    """
    return query_aware_masks(q, k, grid, gammas=(gamma,), scale=scale, heads=heads)[0]


def query_aware_masks(
    q: Tensor,
    k: Tensor,
    grid: BlockGrid,
    *,
    gammas: Sequence[float | Tensor],
    scale: float,
    heads: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """`query_aware_mask` at several thresholds, with one sort for all of them."""
    causal = grid.causal_mask(q.device)
    queries = _block_means(q, grid.q_offset, grid.block_size)  # [B, H, R, D]
    keys = _block_means(k, 0, grid.block_size)
    group = q.shape[1] // k.shape[1]
    heads = torch.arange(q.shape[1], device=q.device) if heads is None else heads
    scores = queries.index_select(1, heads) @ keys.index_select(1, heads // group).mT * scale
    share = scores.masked_fill(~causal, -torch.inf).softmax(-1)
    forced = forced_blocks(grid, q.device)
    return tuple(mask | forced for mask in flat_gamma_masks(share, gammas))


def is_query_aware(inputs: LayerInputs, estimate: LastBlockEstimate, kappa: float) -> Tensor:
    """bool [B, H]: the pooled estimate of the last block row is close to the exact one."""
    pooled = pooled_estimate(inputs.q, inputs.k, inputs.grid, inputs.scale)
    return sqrt_jsd(pooled, block_sum(estimate.vertical, inputs.grid)) < kappa


@dataclass(frozen=True, kw_only=True)
class QueryAwarePattern:
    """FlexPrefill: each head query-aware or vertical-slash, whichever the last block row says.

    `point.kappa` is FlexPrefill's tau; 0 makes every head vertical-slash, 1 query-aware.
    """

    point: OperatingPoint

    def decide(self, inputs: LayerInputs) -> Decision:
        point, grid = self.point, inputs.grid
        estimate = inputs.kernels.last_block(inputs.q, inputs.k, grid, scale=inputs.scale)
        vertical_slash = vertical_slash_at(point, estimate, grid)
        minimum = minimum_vertical_slash_mask(
            estimate, grid, min_budget=point.min_budget, slash_cover=point.slash_cover
        )
        query_aware = query_aware_mask(
            inputs.q, inputs.k, grid, gamma=point.gamma, scale=inputs.scale
        )
        chosen = is_query_aware(inputs, estimate, point.kappa)
        branch = torch.where(chosen, Branch.QUERY_AWARE.value, Branch.VERTICAL_SLASH.value)
        return Decision(
            mask=torch.where(chosen[..., None, None], query_aware | minimum, vertical_slash),
            dense=torch.zeros_like(chosen),
            branch=branch.to(torch.uint8),
            mass_heads=None,
            cost=torch.full_like(
                chosen, last_block_cost(grid) + pooled_cost(grid), dtype=torch.float32
            ),
        )

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        """Nothing passes from layer to layer."""


def _block_means(x: Tensor, offset: int, block_size: int) -> Tensor:
    """float32 [B, H, blocks, D], means of x [B, H, L, D] on the absolute block grid.

    offset: absolute position of x[:, :, 0]. Only partial first and last blocks are treated apart,
    so that no padded or float32 copy of x is made.
    """
    head = min(-offset % block_size, x.shape[2])
    tail = (x.shape[2] - head) % block_size
    sizes = (head, x.shape[2] - head - tail, tail)
    means = [
        part.unflatten(2, (-1, width)).mean(-2, dtype=torch.float32)
        for part, width in zip(x.split(sizes, dim=2), (head, block_size, tail), strict=True)
        if part.shape[2] > 0
    ]
    return torch.cat(means, dim=2)
