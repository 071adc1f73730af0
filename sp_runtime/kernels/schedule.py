"""The order in which the query tiles of an attention call start, computed on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from sp_runtime.block_index import BlockIndex


def row_order(index: BlockIndex, group: int) -> Tensor:
    """int32 [B*H*R]: longest rows first inside sections of one KV head, whose query heads stay
    neighbours where their rows are equally long. Stable, so the same on every run.
    """
    batch, heads, rows = index.dense.shape
    device = index.dense.device
    full = torch.arange(index.grid.first_row, index.grid.num_cols, device=device) + 1
    counts = torch.where(index.dense, full, index.row_ptr.diff().view(index.dense.shape))

    def sections(per_row: Tensor) -> Tensor:
        grouped = per_row.view(batch * heads // group, group, rows)
        return grouped.transpose(1, 2).flip(1).flatten(1)

    longest = sections(counts).sort(dim=1, descending=True, stable=True).indices
    return sections(flat_rows(index)).gather(1, longest).flatten()


def flat_rows(index: BlockIndex) -> Tensor:
    """int32 [B*H*R]: every (batch, head, row) in order."""
    return torch.arange(index.dense.numel(), dtype=torch.int32, device=index.dense.device)
