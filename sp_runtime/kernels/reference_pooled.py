"""The query-aware choice in plain torch: a part of the `Kernels` protocol, and its definition."""

from __future__ import annotations

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.base import BlockMeans
from sp_runtime.pooling import block_means, last_mean, map_of_means
from sp_runtime.selection import flat_gamma_masks, forced_mask


class ReferencePooled:
    """What block means choose, on any device that torch has."""

    def pool(
        self, q: Tensor, k: Tensor, grid: BlockGrid, *, heads: Tensor | None = None
    ) -> BlockMeans:
        """See `Kernels.pool`."""
        rows = block_means(q, grid.q_offset, grid.block_size)
        queries = torch.cat([rows, last_mean(q, grid)[:, :, None]], dim=2)
        return BlockMeans(
            queries=queries if heads is None else queries.index_select(1, heads),
            keys=block_means(k, 0, grid.block_size),
            heads=heads,
            num_heads=q.shape[1],
        )

    def pooled_row(self, means: BlockMeans, grid: BlockGrid, *, scale: float) -> Tensor:
        """See `Kernels.pooled_row`."""
        last = means.queries[:, :, -1:]
        return (last @ _keys(means).mT * scale).squeeze(2).softmax(-1)

    def query_aware(
        self,
        means: BlockMeans,
        grid: BlockGrid,
        *,
        gamma: float | Tensor,
        scale: float,
        onto: Tensor | None = None,
        slots: Tensor | None = None,
    ) -> Tensor:
        """See `Kernels.query_aware`."""
        rows, device = means.queries[:, :, :-1], means.queries.device
        share = map_of_means(rows, _keys(means), grid, scale=scale)
        chosen = flat_gamma_masks(share, (gamma,))[0]
        chosen |= forced_mask(grid.num_rows, grid.num_cols, 0, device)
        if onto is None:
            return chosen
        if isinstance(gamma, Tensor):
            chosen &= (gamma > 0)[..., None, None]
        slots = torch.arange(chosen.shape[1], device=device) if slots is None else slots
        return onto.index_copy_(1, slots, chosen | onto.index_select(1, slots))


def _keys(means: BlockMeans) -> Tensor:
    """[B, S, C, D]: the keys that each slot reads."""
    count, device = means.queries.shape[1], means.keys.device
    heads = torch.arange(count, device=device) if means.heads is None else means.heads
    return means.keys.index_select(1, heads // (means.num_heads // means.keys.shape[1]))
