"""Query-aware: blocks chosen from pooled queries and keys.

Source: FlexPrefill (arXiv 2502.20766), Algorithms 2 and 4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.base import Kernels, LastBlockEstimate
from sp_runtime.patterns.base import LayerInputs
from sp_runtime.patterns.masks import flat_gamma_masks, forced_blocks, sqrt_jsd
from sp_runtime.patterns.pooling import block_means, pooled_map


def pooled_estimate(q: Tensor, k: Tensor, grid: BlockGrid, scale: float) -> Tensor:
    """a_bar, float32 [B, H, C]: softmax of the mean of the last queries on the mean key of blocks.

    The last min(block_size, Nq) queries; a ragged last key block is the mean of its own keys.
    """
    last = q[:, :, -min(grid.block_size, grid.q_len) :].mean(-2, dtype=torch.float32)
    keys = block_means(k, 0, grid.block_size)  # [B, Hkv, C, D]
    grouped = last.unflatten(1, (k.shape[1], -1))  # [B, Hkv, G, D]
    scores = grouped @ keys.transpose(-1, -2) * scale
    return scores.softmax(-1).flatten(1, 2)


def query_aware_mask(
    kernels: Kernels,
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
    share = pooled_map(q, k, grid, scale=scale, heads=heads)
    return kernels.flat_gamma_mask(share, gamma) | forced_blocks(grid, q.device)


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
    share = pooled_map(q, k, grid, scale=scale, heads=heads)
    forced = forced_blocks(grid, q.device)
    return tuple(mask | forced for mask in flat_gamma_masks(share, gammas))


def is_query_aware(inputs: LayerInputs, estimate: LastBlockEstimate, kappa: float) -> Tensor:
    """bool [B, H]: the pooled estimate of the last block row is close to the exact one."""
    pooled = pooled_estimate(inputs.q, inputs.k, inputs.grid, inputs.scale)
    return sqrt_jsd(pooled, estimate.block_sums(inputs.grid)[0]) < kappa
