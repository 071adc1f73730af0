"""Triton kernels that turn block masks into a CSR index on the device, one block row a program.

The list capacity is the number of causal blocks of all heads, the most that any mask can hold: it
depends on the shape alone, so nothing has to be counted on the host.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(
    do_not_specialize=["stride_b", "stride_h", "stride_r", "num_heads", "num_rows", "first_row"]
)
def count_kernel(
    mask_ptr,  # uint8 [B, H, R, C], any strides
    dense_ptr,  # uint8 [B*H*R]
    count_ptr,  # int32 [B*H*R]
    stride_b,
    stride_h,
    stride_r,
    stride_c,
    num_heads,
    num_rows,
    first_row,
    COLS: tl.constexpr,
):
    """Number of listed blocks of each row: past ones of the mask and the diagonal; 0 if dense."""
    flat = tl.program_id(0)
    row = flat % num_rows
    head_b = flat // num_rows
    base = mask_ptr + (head_b // num_heads).to(tl.int64) * stride_b
    base += (head_b % num_heads).to(tl.int64) * stride_h + row.to(tl.int64) * stride_r
    diagonal = first_row + row
    found = tl.zeros([COLS], tl.int32)
    for c in range(0, diagonal, COLS):
        cols = c + tl.arange(0, COLS)
        found += (tl.load(base + cols * stride_c, mask=cols < diagonal, other=0) != 0).to(tl.int32)
    count = tl.sum(found, 0) + 1
    tl.store(count_ptr + flat, tl.where(tl.load(dense_ptr + flat) != 0, 0, count))


@triton.jit(
    do_not_specialize=["stride_b", "stride_h", "stride_r", "num_heads", "num_rows", "first_row"]
)
def fill_kernel(
    mask_ptr,  # uint8 [B, H, R, C], any strides
    dense_ptr,  # uint8 [B*H*R]
    row_ptr,  # int32 [B*H*R + 1]
    col_ptr,  # int32 [capacity]
    stride_b,
    stride_h,
    stride_r,
    stride_c,
    num_heads,
    num_rows,
    first_row,
    COLS: tl.constexpr,
):
    """Write each row's list in ascending order; the diagonal is its last entry."""
    flat = tl.program_id(0)
    if tl.load(dense_ptr + flat) != 0:
        return
    row = flat % num_rows
    head_b = flat // num_rows
    base = mask_ptr + (head_b // num_heads).to(tl.int64) * stride_b
    base += (head_b % num_heads).to(tl.int64) * stride_h + row.to(tl.int64) * stride_r
    diagonal = first_row + row
    at = tl.load(row_ptr + flat)
    for c in range(0, diagonal, COLS):
        cols = c + tl.arange(0, COLS)
        on = tl.load(base + cols * stride_c, mask=cols < diagonal, other=0) != 0
        rank = tl.cumsum(on.to(tl.int32), 0)
        tl.store(col_ptr + at + rank - 1, cols, mask=on)
        at += tl.sum(on.to(tl.int32), 0)
    tl.store(col_ptr + at, diagonal)
