"""Pure functions on block masks and block distributions, shared by every method.

All of them stay on the device of their inputs and never synchronise with the host; equal weights
are ordered by the lower index. Legend: R query block rows, C key block columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.base import block_sum
from sp_runtime.selection import (
    flat_gamma_masks,
    forced_mask,
    gamma_mask,
    gamma_masks,
    spread_gamma_masks,
    sqrt_jsd,
    top_blocks,
)

__all__ = [
    "block_sum",
    "flat_gamma_masks",
    "forced_blocks",
    "gamma_mask",
    "gamma_masks",
    "spread_gamma_masks",
    "sqrt_jsd",
    "top_blocks",
]


def forced_blocks(
    grid: BlockGrid, device: torch.device | str | None = None, *, local_blocks: int = 0
) -> Tensor:
    """bool [R, C]: key block 0, the diagonal, and as many key blocks before it; in final masks."""
    return forced_mask(grid.num_rows, grid.num_cols, local_blocks, device)
