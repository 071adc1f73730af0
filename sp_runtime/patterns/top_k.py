"""The top-k blocks of every block row, a bounded number of rows at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.patterns.masks import forced_blocks, top_blocks

_MAX_SORTED = 1 << 23  # scores sorted at a time: about 150 MB of transient memory


def top_blocks_of_rows(scores: Tensor, count: int | Tensor) -> Tensor:
    """bool [B, S, R, C]: the `count` largest entries of every row, ties to the lower index.

    scores: float32 [B, S, R, C], -inf for what must not be chosen (chosen last, not never).
    count: a number, or int64 [S], one for each head.
    """
    heads, rows, cols = scores.shape[1:]
    if not isinstance(count, Tensor):
        count = torch.full((heads,), count, device=scores.device)
    step = max(1, _MAX_SORTED // (scores.shape[0] * rows * cols))
    parts = [
        top_blocks(part, wanted[:, None].expand(part.shape[:-1]))
        for part, wanted in zip(scores.split(step, dim=1), count.split(step), strict=True)
    ]
    return torch.cat(parts, dim=1)


def top_causal_blocks(scores: Tensor, grid: BlockGrid, count: int | Tensor) -> Tensor:
    """bool [B, S, R, C]: as `top_blocks_of_rows`, of the causal blocks of the grid.

    Block 0 and the diagonal are on and count first. scores: any finite values; count at least 1.
    """
    causal, forced = grid.causal_mask(scores.device), forced_blocks(grid, scores.device)
    ranked = scores.masked_fill(forced, torch.inf).masked_fill_(~causal, -torch.inf)
    return (top_blocks_of_rows(ranked, count) & causal) | forced
