"""Which key blocks each query block attends to: the block grid of a sequence and its CSR index.

Legend of shape suffixes: B batch, H query heads, R query block rows, C key block columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from sp_runtime.errors import UnsupportedError, UsageError

BLOCK_SIZES = (64, 128)
MAX_LISTED_BLOCKS = 2**31 - 1  # row_ptr is int32


@dataclass(frozen=True, kw_only=True)
class BlockGrid:
    """The block rows and columns of one attention call, on the absolute grid of the sequence.

    A call holds the last `q_len` of `kv_len` positions. With a query offset that is no multiple
    of the block size the first block row is partial; only the diagonal key block and the ragged
    last one ever need a mask.
    """

    q_len: int
    kv_len: int
    block_size: int

    def __post_init__(self) -> None:
        if self.block_size not in BLOCK_SIZES:
            raise UsageError(
                f"block size {self.block_size} is not supported",
                hint=f"use one of {', '.join(map(str, BLOCK_SIZES))}",
            )
        if not 1 <= self.q_len <= self.kv_len:
            raise UsageError(f"q_len {self.q_len} must lie in [1, kv_len = {self.kv_len}]")

    @cached_property
    def q_offset(self) -> int:
        """Absolute position of the first query."""
        return self.kv_len - self.q_len

    @cached_property
    def first_row(self) -> int:
        """Absolute index of the first query block row."""
        return self.q_offset // self.block_size

    @cached_property
    def num_cols(self) -> int:
        """C: number of key blocks."""
        return -(-self.kv_len // self.block_size)

    @cached_property
    def num_rows(self) -> int:
        """R: number of query block rows; row r has its diagonal at column first_row + r."""
        return self.num_cols - self.first_row

    @cached_property
    def num_causal_blocks(self) -> int:
        """Blocks that dense causal attention computes for one head."""
        return (self.first_row + 1 + self.num_cols) * self.num_rows // 2

    def closing_rows(self, blocks: int) -> int:
        """Block rows of the last `blocks` blocks of queries: one more than that where the last row
        holds fewer than half a block, at most all."""
        ragged = self.kv_len % self.block_size
        more = blocks > 0 and 0 < ragged < self.block_size // 2
        return min(blocks + more, self.num_rows)

    def causal_mask(self, device: torch.device | str | None = None) -> Tensor:
        """bool [R, C], True where the key block is not wholly in the future."""
        rows = torch.arange(self.first_row, self.num_cols, device=device)
        cols = torch.arange(self.num_cols, device=device)
        return cols[None, :] <= rows[:, None]

    def diagonal_mask(self, device: torch.device | str | None = None) -> Tensor:
        """bool [R, C], True on the diagonal key block of each row."""
        rows = torch.arange(self.first_row, self.num_cols, device=device)
        cols = torch.arange(self.num_cols, device=device)
        return cols[None, :] == rows[:, None]


@dataclass(frozen=True, kw_only=True)
class BlockIndex:
    """Key block lists of every (batch, head, block row) in CSR, on the device.

    row_ptr: int32 [B*H*R + 1], starts of the lists in `col_idx`, in (batch, head, row) order.
    col_idx: int32 [capacity], ascending key block numbers in each list; capacity >= row_ptr[-1].
    dense:   bool [B, H, R], True where the row attends to every causal block; such a row's list
             is empty, because a dense row is a flag and not a list.
    counted: int64 [B, H], the blocks of each head, where the builder has counted them, or None.
    Every row that is not dense holds at least its diagonal block, so no query is without keys.
    """

    grid: BlockGrid
    row_ptr: Tensor
    col_idx: Tensor
    dense: Tensor
    counted: Tensor | None = None

    @classmethod
    def from_mask(cls, mask: Tensor, grid: BlockGrid, dense: Tensor | None = None) -> BlockIndex:
        """Build from a block mask, bool [B, H, R, C]; future blocks are dropped and the diagonal
        is always on. `dense` is bool [B, H] or [B, H, R] and marks rows that take every block.

        Synchronises with the host on CUDA; the Triton kernels have their own builder that does not.
        """
        if mask.dim() != 4 or mask.shape[2:] != (grid.num_rows, grid.num_cols):
            raise UsageError(
                f"block mask has shape {tuple(mask.shape)}, expected "
                f"[B, H, {grid.num_rows}, {grid.num_cols}] for this grid"
            )
        dense_bhr = expand_dense(dense, mask.shape[:3], mask.device)
        mask = normalise_mask(mask, grid) & ~dense_bhr[..., None]
        counts = mask.sum(-1, dtype=torch.int32).flatten()
        row_ptr = torch.zeros(counts.numel() + 1, dtype=torch.int32, device=mask.device)
        torch.cumsum(counts, 0, out=row_ptr[1:])
        col_idx = mask.nonzero()[:, 3].to(torch.int32)
        if col_idx.numel() > MAX_LISTED_BLOCKS:
            raise UnsupportedError(
                f"{col_idx.numel()} listed blocks are more than an index holds",
                hint="mark rows that take nearly every block as dense, or use larger blocks",
            )
        return cls(grid=grid, row_ptr=row_ptr, col_idx=col_idx, dense=dense_bhr)

    @classmethod
    def full(
        cls, batch: int, heads: int, grid: BlockGrid, device: torch.device | str
    ) -> BlockIndex:
        """Every causal block of every head, as flags."""
        rows = batch * heads * grid.num_rows
        return cls(
            grid=grid,
            row_ptr=torch.zeros(rows + 1, dtype=torch.int32, device=device),
            col_idx=torch.zeros(1, dtype=torch.int32, device=device),
            dense=torch.ones(batch, heads, grid.num_rows, dtype=torch.bool, device=device),
        )

    @property
    def batch(self) -> int:
        return self.dense.shape[0]

    @property
    def num_heads(self) -> int:
        return self.dense.shape[1]

    def to_mask(self) -> Tensor:
        """bool [B, H, R, C], the inverse of `from_mask`; synchronises with the host on CUDA."""
        counts = self.row_ptr.diff()
        rows = torch.repeat_interleave(
            torch.arange(counts.numel(), device=counts.device), counts.long()
        )
        mask = torch.zeros(
            counts.numel(), self.grid.num_cols, dtype=torch.bool, device=counts.device
        )
        mask[rows, self.col_idx[: rows.numel()].long()] = True
        mask = mask.view(*self.dense.shape, self.grid.num_cols)
        return mask | (self.dense[..., None] & self.grid.causal_mask(mask.device))

    def blocks(self) -> Tensor:
        """int64 [B, H], number of blocks each head computes; stays on the device."""
        if self.counted is not None:
            return self.counted
        listed = self.row_ptr.diff().view(self.dense.shape)
        last = torch.arange(self.grid.first_row, self.grid.num_cols, device=listed.device) + 1
        return torch.where(self.dense, last, listed).sum(-1)

    def density(self) -> Tensor:
        """float64 [B, H], blocks computed / causal blocks; stays on the device."""
        return self.blocks().double() / self.grid.num_causal_blocks


def normalise_mask(mask: Tensor, grid: BlockGrid) -> Tensor:
    """Drop future blocks and switch the diagonal on: bool [..., R, C] -> bool [..., R, C]."""
    return (mask & grid.causal_mask(mask.device)) | grid.diagonal_mask(mask.device)


def expand_dense(dense: Tensor | None, shape: torch.Size, device: torch.device) -> Tensor:
    """bool [B, H], [B, H, R] or None -> contiguous bool [B, H, R]."""
    if dense is None:
        return torch.zeros(shape, dtype=torch.bool, device=device)
    if dense.shape == shape[:2]:
        dense = dense[..., None].expand(shape)
    if dense.shape != shape:
        raise UsageError(f"dense flags have shape {tuple(dense.shape)}, expected {tuple(shape)}")
    return dense.contiguous()
