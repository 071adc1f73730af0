"""Block means of queries and keys, and the block map that they make.

The map is FlexPrefill's Algorithm 4 (arXiv 2502.20766) before its selection, and what MInference
(arXiv 2407.02490) takes the top-k blocks of. Legend: R query block rows, C key block columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid


def block_means(x: Tensor, offset: int, block_size: int) -> Tensor:
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


def last_mean(q: Tensor, grid: BlockGrid) -> Tensor:
    """float32 [B, H, D]: mean of the last min(block_size, Nq) queries of q [B, H, Nq, D]."""
    return q[:, :, -min(grid.block_size, grid.q_len) :].mean(-2, dtype=torch.float32)


def pooled_map(
    q: Tensor, k: Tensor, grid: BlockGrid, *, scale: float, heads: Tensor | None = None
) -> Tensor:
    """float32 [B, S, R, C]: causal softmax of block means of queries on block means of keys.

    q: [B, H, Nq, D]. k: [B, Hkv, Nk, D]. heads: int64 [S], the heads wanted; None is all of them.
    Every row sums to 1 over its causal blocks.
    """
    heads = torch.arange(q.shape[1], device=q.device) if heads is None else heads
    queries = block_means(q, grid.q_offset, grid.block_size).index_select(1, heads)  # [B, S, R, D]
    keys = block_means(k, 0, grid.block_size)
    keys = keys.index_select(1, heads // (q.shape[1] // k.shape[1]))
    return map_of_means(queries, keys, grid, scale=scale)


def map_of_means(queries: Tensor, keys: Tensor, grid: BlockGrid, *, scale: float) -> Tensor:
    """`pooled_map` of block means queries [B, S, R, D] and keys [B, S, C, D], of their heads."""
    scores = queries @ keys.mT * scale
    return scores.masked_fill(~grid.causal_mask(queries.device), -torch.inf).softmax(-1)
