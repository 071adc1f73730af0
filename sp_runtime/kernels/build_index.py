"""Triton kernels that turn block masks into a CSR index on the device, one block row a program.

The list capacity is the number of causal blocks of all heads, the most that any mask can hold: it
depends on the shape alone, so nothing has to be counted on the host.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(
    do_not_specialize=[
        "dense_b", "dense_h", "dense_r", "stride_b", "stride_h", "stride_r", "slot_b",
        "num_heads", "num_rows", "first_row", "last_rows",
    ]
)  # fmt: skip
def count_kernel(
    mask_ptr,  # uint8 [B, H, R, C], or [B, K, R, C] with SLOTS; any strides
    slot_ptr,  # int64 [B, H], the mask of each head; unused unless SLOTS
    dense_ptr,  # uint8 [B, H, R], any strides; unused unless FLAGGED
    count_ptr,  # int32 [B*H*R]
    out_ptr,  # uint8 [B*H*R], the dense flags in order
    dense_b,
    dense_h,
    dense_r,
    stride_b,
    stride_h,
    stride_r,
    stride_c,
    slot_b,
    num_heads,
    num_rows,
    first_row,
    last_rows,
    FLAGGED: tl.constexpr,
    SLOTS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Number of listed blocks of each row: past ones of the mask and the diagonal; 0 if dense.

    The last_rows last rows of each head are dense.
    """
    flat = tl.program_id(0)
    row = flat % num_rows
    head_b = flat // num_rows
    mask = _mask_of(slot_ptr, slot_b, head_b, num_heads, SLOTS)
    base = mask_ptr + (head_b // num_heads).to(tl.int64) * stride_b
    base += mask * stride_h + row.to(tl.int64) * stride_r
    diagonal = first_row + row
    found = tl.zeros([COLS], tl.int32)
    for c in range(0, diagonal, COLS):
        cols = c + tl.arange(0, COLS)
        found += (tl.load(base + cols * stride_c, mask=cols < diagonal, other=0) != 0).to(tl.int32)
    count = tl.sum(found, 0) + 1
    dense = row >= num_rows - last_rows
    if FLAGGED:
        at = (head_b // num_heads) * dense_b + (head_b % num_heads) * dense_h + row * dense_r
        dense = dense | (tl.load(dense_ptr + at) != 0)
    tl.store(count_ptr + flat, tl.where(dense, 0, count))
    tl.store(out_ptr + flat, dense.to(tl.uint8))


@triton.jit(do_not_specialize=["num_rows", "first_row"])
def row_ptr_kernel(
    count_ptr,  # int32 [B*H*R], 0 where dense
    dense_ptr,  # uint8 [B*H*R]
    row_ptr,  # int32 [B*H*R + 1]
    blocks_ptr,  # int64 [B*H], blocks that each head computes
    num_rows,
    first_row,
    W: tl.constexpr,
):
    """Starts of the lists of one head, and its number of blocks; grid (B*H,)."""
    head_b = tl.program_id(0)
    begin = head_b * num_rows
    before = tl.zeros([W], tl.int32)
    for start in range(0, begin, W):
        i = start + tl.arange(0, W)
        before += tl.load(count_ptr + i, mask=i < begin, other=0)
    at = tl.sum(before, 0)
    blocks = tl.zeros([W], tl.int64)
    for start in range(0, num_rows, W):
        r = start + tl.arange(0, W)
        inside = r < num_rows
        count = tl.load(count_ptr + begin + r, mask=inside, other=0)
        dense = tl.load(dense_ptr + begin + r, mask=inside, other=0)
        tl.store(row_ptr + begin + r, at + tl.cumsum(count, 0) - count, mask=inside)
        blocks += tl.where(dense != 0, first_row + r + 1, count)
        at += tl.sum(count, 0)
    tl.store(blocks_ptr + head_b, tl.sum(blocks, 0))
    if head_b == tl.num_programs(0) - 1:
        tl.store(row_ptr + begin + num_rows, at)


@triton.jit(do_not_specialize=["num_rows", "first_row", "group", "heads"])
def row_order_kernel(
    row_ptr,  # int32 [B*H*R + 1]
    dense_ptr,  # uint8 [B*H*R]
    blocks_ptr,  # int64 [B*H]
    order_ptr,  # int32 [B*H*R]
    taken_ptr,  # int32 [1 + B*H*R], becomes 0: see `hopper_kernel`
    num_rows,
    first_row,
    group,
    heads,
    LONG: tl.constexpr,
    W: tl.constexpr,
    OTHERS: tl.constexpr,
    COUNTS: tl.constexpr,
):
    """Place of W rows in the order in which rows start, by counting; grid (section / W, B*Hkv).

    A section is a KV head; it lists rows from the last, the query heads of a row side by side.
    Rows of more than LONG times the mean length come before all others, longest first; then, one
    section after the other, the rest, longest first. Equally long rows keep that order.
    """
    size = group * num_rows
    rows = size * tl.num_programs(1)
    first = tl.program_id(1) * size
    blocks = tl.zeros([COUNTS], tl.int64)
    for start in range(0, heads, COUNTS):
        h = start + tl.arange(0, COUNTS)
        blocks += tl.load(blocks_ptr + h, mask=h < heads, other=0)
    limit = (tl.sum(blocks, 0) * LONG // rows).to(tl.int32)  # lengths are whole: > is the same

    long_rows = tl.zeros([COUNTS], tl.int32)
    long_before = tl.zeros([COUNTS], tl.int32)
    for start in range(0, rows, COUNTS):
        flat = start + tl.arange(0, COUNTS)
        long = (_row_length(row_ptr, dense_ptr, flat, rows, num_rows, first_row) > limit).to(
            tl.int32
        )
        long_rows += long
        long_before += tl.where(flat < first, long, 0)
    rest = tl.sum(long_rows, 0) + first - tl.sum(long_before, 0)

    own = tl.program_id(0) * W + tl.arange(0, W)
    flat = tl.where(own < size, first + own, rows)
    length = _row_length(row_ptr, dense_ptr, flat, rows, num_rows, first_row)
    place = _place(flat, size, num_rows, group)
    ahead = tl.zeros([W, OTHERS], tl.int32)
    for start in range(first, first + size, OTHERS):
        other = start + tl.arange(0, OTHERS)
        longer = _row_length(row_ptr, dense_ptr, other, first + size, num_rows, first_row)
        longer = tl.where(longer > limit, -1, longer)
        before = _place(other, size, num_rows, group)[None, :] < place[:, None]
        ahead += (longer[None, :] > length[:, None] - before.to(tl.int32)).to(tl.int32)
    rank = rest + tl.sum(ahead, 1)
    if tl.max(length, 0) > limit:  # the long rows are compared with those of all sections
        ahead = tl.zeros([W, OTHERS], tl.int32)
        for start in range(0, rows, OTHERS):
            other = start + tl.arange(0, OTHERS)
            longer = _row_length(row_ptr, dense_ptr, other, rows, num_rows, first_row)
            longer = tl.where(longer > limit, longer, -1)
            before = _place(other, size, num_rows, group)[None, :] < place[:, None]
            ahead += (longer[None, :] > length[:, None] - before.to(tl.int32)).to(tl.int32)
        rank = tl.where(length > limit, tl.sum(ahead, 1), rank)
    tl.store(order_ptr + rank, flat, mask=own < size)
    tl.store(taken_ptr + 1 + flat, tl.zeros([W], tl.int32), mask=own < size)
    if first + tl.program_id(0) == 0:
        tl.store(taken_ptr, 0)


@triton.jit
def _row_length(row_ptr, dense_ptr, flat, stop, num_rows, first_row):
    """How many blocks the rows `flat` hold; -1 from `stop` on."""
    inside = flat < stop
    listed = tl.load(row_ptr + flat + 1, mask=inside, other=-1)
    listed -= tl.load(row_ptr + flat, mask=inside, other=0)
    dense = tl.load(dense_ptr + flat, mask=inside, other=0)
    return tl.where(dense != 0, first_row + flat % num_rows + 1, listed)


@triton.jit
def _place(flat, size, num_rows, group):
    """Where rows stand before they are ordered: by section, from the last row, heads together."""
    row = num_rows - 1 - flat % num_rows
    return flat // size * size + row * group + (flat // num_rows) % group


@triton.jit
def _mask_of(slot_ptr, slot_b, head_b, num_heads, SLOTS: tl.constexpr):
    """The number of a head's mask among those of its sequence."""
    if SLOTS:
        return tl.load(slot_ptr + (head_b // num_heads) * slot_b + head_b % num_heads)
    else:
        return (head_b % num_heads).to(tl.int64)


@triton.jit(
    do_not_specialize=[
        "stride_b", "stride_h", "stride_r", "slot_b", "num_heads", "num_rows", "first_row",
    ]
)  # fmt: skip
def fill_kernel(
    mask_ptr,  # uint8 [B, H, R, C], or [B, K, R, C] with SLOTS; any strides
    slot_ptr,  # int64 [B, H], the mask of each head; unused unless SLOTS
    dense_ptr,  # uint8 [B*H*R]
    row_ptr,  # int32 [B*H*R + 1]
    col_ptr,  # int32 [capacity]
    stride_b,
    stride_h,
    stride_r,
    stride_c,
    slot_b,
    num_heads,
    num_rows,
    first_row,
    SLOTS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Write each row's list in ascending order; the diagonal is its last entry."""
    flat = tl.program_id(0)
    if tl.load(dense_ptr + flat) != 0:
        return
    row = flat % num_rows
    head_b = flat // num_rows
    mask = _mask_of(slot_ptr, slot_b, head_b, num_heads, SLOTS)
    base = mask_ptr + (head_b // num_heads).to(tl.int64) * stride_b
    base += mask * stride_h + row.to(tl.int64) * stride_r
    diagonal = first_row + row
    at = tl.load(row_ptr + flat)
    for c in range(0, diagonal, COLS):
        cols = c + tl.arange(0, COLS)
        on = tl.load(base + cols * stride_c, mask=cols < diagonal, other=0) != 0
        rank = tl.cumsum(on.to(tl.int32), 0)
        tl.store(col_ptr + at + rank - 1, cols, mask=on)
        at += tl.sum(on.to(tl.int32), 0)
    tl.store(col_ptr + at, diagonal)
