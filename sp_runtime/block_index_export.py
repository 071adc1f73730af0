"""A `BlockIndex` in the formats of other libraries: FlexAttention, FlashAttention 4 and BSR.

A full block needs no token mask; a partial one does. Partial are the diagonal blocks; to
FlexAttention, where the last block row is ragged, also all of that row, as in its own
`create_block_mask`. FlexAttention and FlashAttention 4 count query blocks from the first query, so
an index whose query offset is no multiple of the block size cannot be exported to them. All exports
but that to FlashAttention 4 read the index on the host, which synchronises on CUDA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sp_runtime.block_index import MAX_LISTED_BLOCKS, BlockGrid, BlockIndex
from sp_runtime.errors import UnsupportedError

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


@dataclass(frozen=True, kw_only=True, slots=True)
class FA4BlockTensors:
    """Block-sparse tensors of FlashAttention 4's forward pass, all int32.

    mask_block_cnt, full_block_cnt: [B, H, R], partial and full key blocks of each block row.
    mask_block_idx [B, H, R, 1], full_block_idx [B, H, R, C]: their numbers, ascending; entries past
    the count are unused. block_size: (queries, keys). A partial block, the diagonal one of each
    row, needs the causal token mask; a full one holds keys alone that exist.
    """

    mask_block_cnt: Tensor
    mask_block_idx: Tensor
    full_block_cnt: Tensor
    full_block_idx: Tensor
    block_size: tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class BsrIndex:
    """The block pattern of every head as block-sparse rows, on the block grid of the sequence.

    indptr: int32 [B, H, R + 1], starts within the head's own list.
    indices: int32, the key blocks of all heads in (batch, head, row) order.
    offsets: int64 [B * H + 1], where each head's list starts in `indices`.
    Only which blocks are computed: the causal token mask of diagonal blocks is the consumer's.
    """

    indptr: Tensor
    indices: Tensor
    offsets: Tensor

    def head(self, batch: int, head: int) -> tuple[Tensor, Tensor]:
        """(indptr [R + 1], indices [nnz]) of one head, as `torch.sparse_bsr_tensor` takes them."""
        start, stop = self.offsets[batch * self.indptr.shape[1] + head :][:2].tolist()
        return self.indptr[batch, head], self.indices[start:stop]


def to_flex_block_mask(index: BlockIndex) -> BlockMask:
    """FlexAttention's BlockMask, for `flex_attention(q, k, v, block_mask=..., enable_gqa=True)`.

    Its mask_mod holds the whole pattern (a bool tensor [B, H, R, C]), since eager FlexAttention
    applies the mask_mod alone and ignores the block lists.
    Raises UnsupportedError for a query offset that is no multiple of the block size.
    """
    from torch.nn.attention.flex_attention import BlockMask  # slow to import

    grid = index.grid
    _require_aligned(grid, "FlexAttention")
    mask = index.to_mask()
    partial_cnt, partial_idx = _ordered(mask & _partial_blocks(grid, mask.device))
    full_cnt, full_idx = _ordered(mask & ~_partial_blocks(grid, mask.device))
    size, offset = grid.block_size, grid.q_offset

    def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (q_idx + offset >= kv_idx) & mask[b, h, q_idx // size, kv_idx // size]

    return BlockMask.from_kv_blocks(
        partial_cnt,
        partial_idx,
        full_cnt,
        full_idx,
        BLOCK_SIZE=size,
        mask_mod=mask_mod,
        seq_lengths=(grid.q_len, grid.kv_len),
    )


def to_fa4_tensors(index: BlockIndex) -> FA4BlockTensors:
    """FlashAttention 4's block-sparse tensors, made on the index's device without a host sync.

    Raises UnsupportedError for a query offset that is no multiple of the block size, and for lists
    of 2^31 entries or more.
    """
    grid, shape = index.grid, index.dense.shape
    _require_aligned(grid, "FlashAttention 4")
    if shape.numel() * grid.num_cols > MAX_LISTED_BLOCKS:
        raise UnsupportedError(
            f"{shape.numel()} rows of {grid.num_cols} blocks are more than one call lists",
            hint="prefill in chunks",
        )
    device = index.dense.device
    diagonal = torch.arange(grid.first_row, grid.num_cols, dtype=torch.int32, device=device)
    last = diagonal[:, None].expand(*shape, 1)
    # The diagonal block comes last in its row, so that full blocks are all entries before it.
    full = torch.where(index.dense, diagonal, index.row_ptr.diff().view(shape) - 1)
    return FA4BlockTensors(
        mask_block_cnt=torch.ones_like(full),
        # A copy also of one head, whose stride of 0 would be another kernel.
        mask_block_idx=last.clone(memory_format=torch.contiguous_format),
        full_block_cnt=full,
        full_block_idx=_padded_lists(index),
        block_size=(grid.block_size, grid.block_size),
    )


def to_bsr(index: BlockIndex) -> BsrIndex:
    """Block-sparse rows of every head; dense rows are written out."""
    mask = index.to_mask()
    counts = mask.sum(-1)
    indptr = torch.nn.functional.pad(counts.cumsum(-1), (1, 0)).to(torch.int32)
    offsets = torch.nn.functional.pad(counts.sum(-1).flatten().cumsum(0), (1, 0))
    return BsrIndex(indptr=indptr, indices=mask.nonzero()[:, 3].to(torch.int32), offsets=offsets)


def _partial_blocks(grid: BlockGrid, device: torch.device) -> Tensor:
    """bool [R, C], the causal blocks in which some (query, key) pair is masked or missing."""
    partial = grid.diagonal_mask(device)
    if grid.kv_len % grid.block_size != 0:
        partial[-1] = True
    return partial


def _padded_lists(index: BlockIndex) -> Tensor:
    """int32 [B, H, R, C]: the blocks of each row, ascending; arbitrary past their number."""
    shape = (*index.dense.shape, index.grid.num_cols)
    places = torch.arange(shape[-1], dtype=torch.int32, device=index.dense.device)
    if index.col_idx.numel() == 0:  # every row is dense
        return places.expand(shape).clone(memory_format=torch.contiguous_format)
    at = (index.row_ptr[:-1, None] + places).clamp_(max=index.col_idx.numel() - 1)
    listed = index.col_idx.index_select(0, at.flatten()).view(shape)
    return torch.where(index.dense[..., None], places, listed)


def _ordered(mask: Tensor) -> tuple[Tensor, Tensor]:
    """bool [..., C] -> counts int32 [...], and the chosen columns first, int32 [..., C]."""
    order = torch.argsort(mask.to(torch.uint8), dim=-1, descending=True, stable=True)
    return mask.sum(-1, dtype=torch.int32), order.to(torch.int32)


def _require_aligned(grid: BlockGrid, consumer: str) -> None:
    if grid.q_offset % grid.block_size != 0:
        raise UnsupportedError(
            f"{consumer} counts query blocks from the first query, and the query offset "
            f"{grid.q_offset} is no multiple of the block size {grid.block_size}",
            hint="cut the chunks of a prefill at multiples of the block size",
        )
