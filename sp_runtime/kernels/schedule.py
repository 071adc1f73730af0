"""The order in which the query tiles of an attention call start, computed on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from sp_runtime.block_index import BlockIndex

# Rows of more than this many times the mean number of blocks start before all others.
LONG_ROW = 4


def row_order(index: BlockIndex, group: int) -> Tensor:
    """int32 [B*H*R]: longest rows first inside sections of one KV head, whose query heads stay
    neighbours where their rows are equally long. Stable, so the same on every run.

    Rows of more than LONG_ROW times the mean come before all sections, longest first: a dense head
    among sparse ones would else start late and end alone.
    """
    batch, heads, rows = index.dense.shape
    device = index.dense.device
    full = torch.arange(index.grid.first_row, index.grid.num_cols, device=device) + 1
    counts = torch.where(index.dense, full, index.row_ptr.diff().view(index.dense.shape))

    def sections(per_row: Tensor) -> Tensor:
        grouped = per_row.view(batch * heads // group, group, rows)
        return grouped.transpose(1, 2).flip(1).flatten(1)

    lengths = sections(counts)
    long = lengths * lengths.numel() > LONG_ROW * lengths.sum()
    number = torch.arange(1, lengths.shape[0] + 1, device=device)[:, None]
    section = torch.where(long, 0, number)
    key = section * (index.grid.num_cols + 1) + (index.grid.num_cols - lengths)
    order = key.flatten().sort(stable=True).indices
    return sections(flat_rows(index)).flatten().gather(0, order)


def flat_rows(index: BlockIndex) -> Tensor:
    """int32 [B*H*R]: every (batch, head, row) in order."""
    return torch.arange(index.dense.numel(), dtype=torch.int32, device=index.dense.device)
