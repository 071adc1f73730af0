"""Launches that turn block masks into a `BlockIndex`, and order its rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.errors import ResourceError, UsageError
from sp_runtime.kernels.build_index import (
    count_kernel,
    fill_kernel,
    row_order_kernel,
    row_ptr_kernel,
)
from sp_runtime.kernels.program import Program, kept
from sp_runtime.kernels.schedule import LONG_ROW
from sp_runtime.kernels.triton_share import empty_mask, memory_bound

# Mask columns that a program reads at once.
_COLS = 256
# Row counts that a program sums at once.
_COUNTS = 4096
# Rows whose place a program finds, and rows that it compares them with at once.
_RANKED, _OTHERS = 64, 64


class TritonIndexing:
    """`Kernels.build_index` on CUDA tensors."""

    def build_index(
        self,
        mask: Tensor,
        grid: BlockGrid,
        dense: Tensor | None,
        *,
        slots: Tensor | None = None,
        last_rows: int = 0,
    ) -> BlockIndex:
        """See `Kernels.build_index`; the list capacity is that of all causal blocks."""
        if mask.dim() != 4 or mask.shape[2:] != (grid.num_rows, grid.num_cols):
            raise UsageError(
                f"block mask has shape {tuple(mask.shape)}, expected "
                f"[B, H, {grid.num_rows}, {grid.num_cols}] for this grid"
            )
        batch, heads, rows = mask.shape[:3]
        if slots is not None:
            heads = slots.shape[1]
            if slots.stride(1) != 1:  # sequences may share theirs
                slots = slots.contiguous()
        capacity = batch * heads * grid.num_causal_blocks
        if capacity >= 2**31:
            raise ResourceError(
                f"a block index of {capacity} blocks passes 2^31",
                hint="use block size 128, fewer heads at once or chunked prefill",
            )
        flags, flag_strides = _dense_flags(dense, mask, (batch, heads, rows))
        device = mask.device
        counts = torch.empty(batch * heads * rows, dtype=torch.int32, device=device)
        row_ptr = torch.empty(batch * heads * rows + 1, dtype=torch.int32, device=device)
        col_idx = torch.empty(capacity, dtype=torch.int32, device=device)
        counted = torch.empty(batch, heads, dtype=torch.int64, device=device)
        out = empty_mask((batch, heads, rows), device)
        count, start, fill = _index_programs(
            (batch, heads, rows, grid.first_row), mask.stride(), flag_strides,
            0 if slots is None else slots.stride(0), last_rows, dense is not None,
            slots is not None,
        )  # fmt: skip
        number = mask if slots is None else slots
        count(mask_ptr=mask, slot_ptr=number, dense_ptr=flags, count_ptr=counts, out_ptr=out)
        start(count_ptr=counts, dense_ptr=out, row_ptr=row_ptr, blocks_ptr=counted)
        fill(mask_ptr=mask, slot_ptr=number, dense_ptr=out, row_ptr=row_ptr, col_ptr=col_idx)
        return BlockIndex(grid=grid, row_ptr=row_ptr, col_idx=col_idx, dense=out, counted=counted)


def row_schedule(index: BlockIndex, group: int) -> tuple[Tensor, Tensor]:
    """`schedule.row_order`, and int32 [1 + B*H*R] of zeros, which `hopper_kernel` takes with it.

    In one launch. group: query heads of a KV head.
    """
    batch, heads, rows = index.dense.shape
    tiles = batch * heads * rows
    # Both in one allocation, on which the alignment of the second does not depend.
    second = -(-tiles // 4) * 4
    whole = torch.empty(second + tiles + 1, dtype=torch.int32, device=index.dense.device)
    order, taken = whole[:tiles], whole[second:]
    rank = _row_order(batch, heads, rows, index.grid.first_row, group)
    rank(
        row_ptr=index.row_ptr,
        dense_ptr=index.dense.contiguous(),
        blocks_ptr=index.blocks(),
        order_ptr=order,
        taken_ptr=taken,
    )
    return order, taken


@kept
def _index_programs(
    size: tuple[int, int, int, int],
    mask_strides: tuple[int, ...],
    dense_strides: tuple[int, ...],
    slot_b: int,
    last_rows: int,
    flagged: bool,
    slots: bool,
) -> tuple[Program, Program, Program]:
    """The three passes of `build_index`. size: batch, heads, rows, the first row."""
    batch, heads, rows, first_row = size
    flags: dict[str, Any] = dict(zip(("dense_b", "dense_h", "dense_r"), dense_strides, strict=True))
    lists: dict[str, Any] = {
        **dict(zip(("stride_b", "stride_h", "stride_r", "stride_c"), mask_strides, strict=True)),
        "slot_b": slot_b,
        "SLOTS": slots,
        "num_heads": heads,
        "num_rows": rows,
        "first_row": first_row,
        "COLS": _COLS,
    }
    count = Program(
        count_kernel,
        (batch * heads * rows,),
        memory_bound(1),
        **flags,
        last_rows=last_rows,
        FLAGGED=flagged,
        **lists,
    )
    start = Program(
        row_ptr_kernel,
        (batch * heads,),
        memory_bound(8),
        num_rows=rows,
        first_row=first_row,
        W=_COUNTS,
    )
    fill = Program(fill_kernel, (batch * heads * rows,), memory_bound(1), **lists)
    return count, start, fill


@kept
def _row_order(batch: int, heads: int, rows: int, first_row: int, group: int) -> Program:
    return Program(
        row_order_kernel,
        (-(-group * rows // _RANKED), batch * heads // group),
        num_rows=rows,
        first_row=first_row,
        group=group,
        heads=batch * heads,
        LONG=LONG_ROW,
        W=_RANKED,
        OTHERS=_OTHERS,
        COUNTS=1024,
    )


def _dense_flags(
    dense: Tensor | None, mask: Tensor, shape: tuple[int, int, int]
) -> tuple[Tensor, tuple[int, ...]]:
    """Dense flags and their strides as [B, H, R]; the mask's own memory where there are none."""
    if dense is None:
        return mask, (0, 0, 0)
    if dense.shape == shape[:2]:
        return dense, (*dense.stride(), 0)
    if dense.shape != shape:
        raise UsageError(f"dense flags have shape {tuple(dense.shape)}, expected {shape}")
    return dense, dense.stride()
