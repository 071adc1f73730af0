"""Query-aware: blocks chosen from pooled queries and keys.

Source: FlexPrefill (arXiv 2502.20766), Algorithms 2 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.base import BlockMeans, LastBlockEstimate
from sp_runtime.patterns.base import Branch, LayerInputs
from sp_runtime.patterns.masks import flat_gamma_masks, forced_blocks
from sp_runtime.pooling import pooled_map


def query_aware_masks(
    q: Tensor,
    k: Tensor,
    grid: BlockGrid,
    *,
    gammas: Sequence[float | Tensor],
    scale: float,
    heads: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The largest blocks of the pooled attention map of each head that together reach each gamma.

    The map is the causal softmax of block means of queries on block means of keys, flattened and
    normalised; the block with which the sum reaches gamma is kept, and the forced blocks are on.
    FlexPrefill unites it with the vertical-slash of exactly its minimum budget. As
    `Kernels.query_aware`, with one sort for all thresholds.

    Args:
        q: [B, H, Nq, D]. k: [B, Hkv, Nk, D].
        gammas: each in (0, 1], a number or float32 broadcastable to [B, S].
        heads: int64 [S], the heads wanted; None is all of them.

    Returns:
        bool [B, S, R, C] for each gamma.
    """
    share = pooled_map(q, k, grid, scale=scale, heads=heads)
    forced = forced_blocks(grid, q.device)
    return tuple(mask | forced for mask in flat_gamma_masks(share, gammas))


def is_query_aware(
    inputs: LayerInputs, means: BlockMeans, estimate: LastBlockEstimate, kappa: float
) -> Tensor:
    """bool [B, H]: the pooled estimate of the last block row is close to the exact one.

    means: of every head.
    """
    kernels, grid = inputs.kernels, inputs.grid
    pooled = kernels.pooled_row(means, grid, scale=inputs.scale)
    every = inputs.constants.every_head(inputs.num_heads, inputs.q.device)
    return kernels.close_rows(pooled, estimate.block_sums(grid)[0], every, limit=kappa)


def add_query_aware(
    inputs: LayerInputs, means: BlockMeans, chosen: Tensor, masks: Tensor, *, gamma: float
) -> None:
    """Unite masks bool [B, H, R, C] in place with the query-aware choice of the heads `chosen`.

    means: of every head. chosen: bool [B, H].
    """
    level = by_choice(inputs, chosen, gamma, 0.0)
    inputs.kernels.query_aware(means, inputs.grid, gamma=level, scale=inputs.scale, onto=masks)


def by_choice(
    inputs: LayerInputs,
    chosen: Tensor,
    on: float,
    off: float,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """[B, H]: `on` where `chosen`, bool [B, H], and `off` elsewhere; one operator on the device."""
    full, device = inputs.constants.full, inputs.q.device
    return torch.where(chosen, full((), on, dtype, device), full((), off, dtype, device))


def query_aware_branch(inputs: LayerInputs, chosen: Tensor) -> Tensor:
    """uint8 [B, H]: query-aware where `chosen`, vertical-slash elsewhere."""
    on, off = int(Branch.QUERY_AWARE), int(Branch.VERTICAL_SLASH)
    return by_choice(inputs, chosen, on, off, torch.uint8)
