"""Triton kernels for the sampled block mass: one pass over K for a strided subset of the queries.

Slot i of block row r is the query at distance i * stride from the row's end; PER_ROW is the slots
of one block row, a power of two of at least ceil(BLOCK / stride). `slot_lse_kernel` keeps the
log-sum-exp of every (slot, key block), from which `slot_mass_kernel` takes the softmax over all
keys, block by block, and its mean over the slots of each block row. Unlike a row log-sum-exp
followed by the masses, that multiplies Q and K once.

Each output element has one writer, and sums run in a fixed order: results are bitwise repeatable.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from sp_runtime.kernels.block_sparse import load_keys, load_queries

_SHAPE = ["n_q", "n_kv", "num_rows", "num_cols", "num_slots", "stride", "width", "start"]


@triton.jit
def slot_positions(slots, first_row, num_rows, q_offset, n_kv, stride, BLOCK, PER_ROW):
    """Absolute positions [M] of query slots [M], and which of them are queries of this call."""
    row = first_row + slots // PER_ROW
    pos = tl.minimum((row + 1) * BLOCK, n_kv) - 1 - (slots % PER_ROW) * stride
    return pos, (row < first_row + num_rows) & (pos >= tl.maximum(row * BLOCK, q_offset))


@triton.jit
def _block_lse(
    q, k_src, pos, batch, kv_head, block, stride_kb, stride_kh, stride_kn, n_kv, scale_log2,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr, DESC: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Base-2 maximum and sum [BM] of queries [BM, DIM] over one key block."""
    SUB_N: tl.constexpr = BLOCK // BN
    m = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    # Unrolled, so that loads of the loop over blocks run ahead; float32 has no registers for it.
    if SUB_N <= 2 and PRECISION != "ieee":
        for sub in tl.static_range(SUB_N):
            m, total = _tile_lse(
                q, k_src, pos, m, total, batch, kv_head, block * BLOCK + sub * BN,
                stride_kb, stride_kh, stride_kn, n_kv, scale_log2,
                HEAD_DIM, DIM, BN, DESC, PRECISION, MASKED,
            )  # fmt: skip
    else:
        for sub in range(SUB_N):
            m, total = _tile_lse(
                q, k_src, pos, m, total, batch, kv_head, block * BLOCK + sub * BN,
                stride_kb, stride_kh, stride_kn, n_kv, scale_log2,
                HEAD_DIM, DIM, BN, DESC, PRECISION, MASKED,
            )  # fmt: skip
    return m, total


@triton.jit
def _tile_lse(
    q, k_src, pos, m, total, batch, kv_head, at, stride_kb, stride_kh, stride_kn, n_kv, scale_log2,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, BN: tl.constexpr, DESC: tl.constexpr,
    PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """m and total [BM] with the keys [at, at + BN) taken in."""
    k = load_keys(
        k_src, batch, kv_head, at, stride_kb, stride_kh, stride_kn, n_kv,
        HEAD_DIM, DIM, BN, DESC, MASKED,
    )  # fmt: skip
    s = tl.dot(q, k.T, input_precision=PRECISION)
    if MASKED:
        s = tl.where(pos[:, None] >= (at + tl.arange(0, BN))[None, :], s, float("-inf"))
    m_new = tl.maximum(m, tl.max(s, 1) * scale_log2)
    base = m_new
    if MASKED:  # a slot may have seen no visible key yet: -inf - -inf must not become NaN
        base = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(s * scale_log2 - base[:, None])
    return m_new, total * tl.exp2(m - base) + tl.sum(p, 1)


@triton.jit(do_not_specialize=[*_SHAPE, "group"])
def slot_lse_kernel(
    q_ptr,
    k_src,
    heads_ptr,  # int64 [B*S], -1 for an empty slot
    part_ptr,  # float32 [heads of this launch, C, width], base 2, written up to the diagonal
    stride_qb,
    stride_qh,
    stride_qn,
    stride_kb,
    stride_kh,
    stride_kn,
    n_q,
    n_kv,
    num_rows,
    num_cols,
    num_slots,
    group,
    stride,
    width,
    start,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_ROW: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    CHUNK: tl.constexpr,
    DESC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Of BM slots over each of CHUNK key blocks; grid (width / BM, C / CHUNK, heads).

    start: the first of the B*S heads of this launch. -inf where a slot has no query or sees no key.
    """
    number = start + tl.program_id(2)
    head = tl.load(heads_ptr + number).to(tl.int32)
    if head < 0:
        return
    batch = number // num_slots
    q_offset = n_kv - n_q
    first_row = q_offset // BLOCK
    slots = tl.program_id(0) * BM + tl.arange(0, BM)
    pos, valid = slot_positions(slots, first_row, num_rows, q_offset, n_kv, stride, BLOCK, PER_ROW)
    # Every position lies in the key blocks [first, last]; those before `first` need no mask.
    first = first_row + tl.program_id(0) * BM // PER_ROW
    last = tl.minimum(
        first_row + (tl.program_id(0) * BM + BM - 1) // PER_ROW, first_row + num_rows - 1
    )
    beg = tl.program_id(1) * CHUNK
    end = tl.minimum(beg + CHUNK, last + 1)
    if beg >= end:
        return
    full = tl.minimum(end, first)
    q = load_queries(
        q_ptr, batch, head, pos - q_offset, stride_qb, stride_qh, stride_qn, valid, HEAD_DIM, DIM
    )
    out = part_ptr + tl.program_id(2).to(tl.int64) * num_cols * width + slots
    for block in tl.range(beg, full):
        m, total = _block_lse(
            q, k_src, pos, batch, head // group, block, stride_kb, stride_kh, stride_kn, n_kv,
            scale_log2, HEAD_DIM, DIM, BLOCK, BM, BN, DESC, PRECISION, False,
        )  # fmt: skip
        lse = tl.where(valid, m + tl.log2(total), float("-inf"))
        tl.store(out + tl.cast(block, tl.int64) * width, lse)
    for block in tl.range(tl.maximum(beg, full), end, num_stages=1):
        m, total = _block_lse(
            q, k_src, pos, batch, head // group, block, stride_kb, stride_kh, stride_kn, n_kv,
            scale_log2, HEAD_DIM, DIM, BLOCK, BM, BN, DESC, PRECISION, True,
        )  # fmt: skip
        seen = valid & (total > 0)
        lse = tl.where(seen, m + tl.log2(tl.where(seen, total, 1.0)), float("-inf"))
        tl.store(out + tl.cast(block, tl.int64) * width, lse)


@triton.jit(do_not_specialize=_SHAPE)
def slot_mass_kernel(
    part_ptr,  # float32 [heads of this launch, C, width], see `slot_lse_kernel`
    heads_ptr,  # int64 [B*S]
    mass_ptr,  # float32 [B*S, R, C]
    n_q,
    n_kv,
    num_rows,
    num_cols,
    num_slots,
    stride,
    width,
    start,
    BLOCK: tl.constexpr,
    PER_ROW: tl.constexpr,
    SLOTS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Mass of SLOTS / PER_ROW block rows on all key blocks; grid (rows / those, heads)."""
    ROWS: tl.constexpr = SLOTS // PER_ROW
    number = start + tl.program_id(1)
    head = tl.load(heads_ptr + number)
    q_offset = n_kv - n_q
    first_row = q_offset // BLOCK
    row = tl.program_id(0) * ROWS
    slots = row * PER_ROW + tl.arange(0, SLOTS)
    diagonal = first_row + slots // PER_ROW
    stop = first_row + tl.minimum(row + ROWS, num_rows)
    if head < 0:
        stop = 0  # an empty slot has no mass
    part = part_ptr + tl.program_id(1).to(tl.int64) * num_cols * width + slots[:, None]
    inside = (slots < width)[:, None]
    m = tl.full([SLOTS], float("-inf"), tl.float32)
    total = tl.zeros([SLOTS], tl.float32)
    for c in range(0, stop, COLS):
        cols = c + tl.arange(0, COLS)[None, :]
        seen = inside & (cols <= diagonal[:, None]) & (cols < stop)
        x = tl.load(part + cols.to(tl.int64) * width, mask=seen, other=float("-inf"))
        m_new = tl.maximum(m, tl.max(x, 1))
        base = tl.where(m_new == float("-inf"), 0.0, m_new)
        total = total * tl.exp2(m - base) + tl.sum(tl.exp2(x - base[:, None]), 1)
        m = m_new
    # A slot without a query has seen nothing: +inf turns its softmax into 0.
    lse = tl.where(total > 0, m + tl.log2(tl.where(total > 0, total, 1.0)), float("inf"))
    rows = row + tl.arange(0, ROWS)
    begin = tl.maximum((first_row + rows) * BLOCK, q_offset)
    finish = tl.minimum((first_row + rows + 1) * BLOCK, n_kv)
    count = tl.maximum((finish - 1 - begin) // stride + 1, 1)  # rows past the last one have none
    at = (number.to(tl.int64) * num_rows + rows)[:, None] * num_cols
    for c in range(0, num_cols, COLS):
        cols = c + tl.arange(0, COLS)[None, :]
        seen = inside & (cols <= diagonal[:, None]) & (cols < stop)
        x = tl.load(part + cols.to(tl.int64) * width, mask=seen, other=float("-inf"))
        p = tl.reshape(tl.exp2(x - lse[:, None]), [ROWS, PER_ROW, COLS])
        mass = tl.sum(p, 1) / count.to(tl.float32)[:, None]
        tl.store(mass_ptr + at + cols, mass, mask=(rows < num_rows)[:, None] & (cols < num_cols))
