"""Triton kernels for the exact block attention mass, from the row log-sum-exp and one pass over K.

A program takes BM query slots. Slot i of block row r is the query at distance i * stride from the
row's end, so stride 1 covers every query and a larger stride a sample; when a block row has fewer
slots than the tile, the tile spans several block rows. PER_ROW is the slots of one block row, a
power of two of at least ceil(BLOCK / stride).

Each output element has one writer, and sums run in a fixed order: results are bitwise repeatable.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from sp_runtime.kernels.block_sparse import load_keys, load_queries

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def slot_positions(
    slots,
    first_row,
    num_rows,
    q_offset,
    n_kv,
    stride,
    BLOCK: tl.constexpr,
    PER_ROW: tl.constexpr,
    LAST: tl.constexpr,
):
    """Absolute positions [M] of query slots [M], and which of them are queries of this call.

    With LAST there is one row of BLOCK slots, the last BLOCK positions in ascending order.
    """
    if LAST:
        pos = n_kv - BLOCK + slots
        return pos, pos >= q_offset
    else:
        row = first_row + slots // PER_ROW
        pos = tl.minimum((row + 1) * BLOCK, n_kv) - 1 - (slots % PER_ROW) * stride
        inside = (row < first_row + num_rows) & (pos >= tl.maximum(row * BLOCK, q_offset))
        return pos, inside


@triton.jit(do_not_specialize=["n_q", "n_kv", "num_rows", "num_slots", "group", "stride", "width"])
def row_lse_kernel(
    q_ptr,
    k_src,
    heads_ptr,  # int64 [B*S], -1 for an empty slot; unused with LAST
    part_ptr,  # float32 [B*S, chunks, width], base-2 log-sum-exp of one chunk of keys
    stride_qb,
    stride_qh,
    stride_qn,
    stride_kb,
    stride_kh,
    stride_kn,
    n_q,
    n_kv,
    num_rows,
    num_slots,
    group,
    stride,
    width,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_ROW: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    CHUNK: tl.constexpr,
    DESC: tl.constexpr,
    LAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Log-sum-exp of BM query slots over CHUNK key blocks; grid (width / BM, chunks, B*S)."""
    SUB_N: tl.constexpr = BLOCK // BN
    slot = tl.program_id(2)
    batch = slot // num_slots
    if LAST:
        head = slot % num_slots
    else:
        head = tl.load(heads_ptr + slot).to(tl.int32)
        if head < 0:
            return
    q_offset = n_kv - n_q
    first_row = q_offset // BLOCK
    slots = tl.program_id(0) * BM + tl.arange(0, BM)
    pos, valid = slot_positions(
        slots, first_row, num_rows, q_offset, n_kv, stride, BLOCK, PER_ROW, LAST
    )
    # Every position lies in the key blocks [first, last]; those before `first` need no mask.
    if LAST:
        first = tl.maximum(n_kv - BLOCK, 0) // BLOCK
        last = (n_kv - 1) // BLOCK
    else:
        first = first_row + tl.program_id(0) * BM // PER_ROW
        last = tl.minimum(
            first_row + (tl.program_id(0) * BM + BM - 1) // PER_ROW, first_row + num_rows - 1
        )
    beg = tl.program_id(1) * CHUNK
    end = tl.minimum(beg + CHUNK, last + 1)
    full = tl.minimum(end, first)
    m = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    if beg < end:
        q = load_queries(
            q_ptr, batch, head, pos - q_offset, stride_qb, stride_qh, stride_qn, valid,
            HEAD_DIM, DIM,
        )  # fmt: skip
        for t in tl.range(beg * SUB_N, full * SUB_N):
            k = load_keys(
                k_src, batch, head // group, t * BN, stride_kb, stride_kh, stride_kn, n_kv,
                HEAD_DIM, DIM, BN, DESC, False,
            )  # fmt: skip
            s = tl.dot(q, k.T, input_precision=PRECISION)
            m_new = tl.maximum(m, tl.max(s, 1) * scale_log2)
            p = tl.exp2(s * scale_log2 - m_new[:, None])
            total = total * tl.exp2(m - m_new) + tl.sum(p, 1)
            m = m_new
        for t in tl.range(tl.maximum(beg, full) * SUB_N, end * SUB_N, num_stages=1):
            k = load_keys(
                k_src, batch, head // group, t * BN, stride_kb, stride_kh, stride_kn, n_kv,
                HEAD_DIM, DIM, BN, DESC, True,
            )  # fmt: skip
            s = tl.dot(q, k.T, input_precision=PRECISION)
            s = tl.where(pos[:, None] >= (t * BN + tl.arange(0, BN))[None, :], s, float("-inf"))
            m_new = tl.maximum(m, tl.max(s, 1) * scale_log2)
            # A row may have seen no visible key yet: -inf - -inf must not become NaN.
            base = tl.where(m_new == float("-inf"), 0.0, m_new)
            p = tl.exp2(s * scale_log2 - base[:, None])
            total = total * tl.exp2(m - base) + tl.sum(p, 1)
            m = m_new
    # A slot without a query holds zeros, not nothing: it must not come out as a finite sum.
    total = tl.where(valid, total, 0.0)
    lse = tl.where(total > 0, m + tl.log2(tl.where(total > 0, total, 1.0)), float("-inf"))
    at = (slot.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * width
    tl.store(part_ptr + at + slots, lse)


@triton.jit(do_not_specialize=["width", "chunks"])
def combine_lse_kernel(part_ptr, lse_ptr, heads_ptr, width, chunks, W: tl.constexpr):
    """Join the chunks of `row_lse_kernel`: lse float32 [B*S, width], base 2; grid (width / W, B*S).

    A slot without a query gets +inf, which later turns its softmax into 0.
    """
    slot = tl.program_id(1)
    if tl.load(heads_ptr + slot) < 0:
        return
    cols = tl.program_id(0) * W + tl.arange(0, W)
    inside = cols < width
    m = tl.full([W], float("-inf"), tl.float32)
    total = tl.zeros([W], tl.float32)
    at = part_ptr + slot.to(tl.int64) * chunks * width + cols
    for c in range(chunks):
        part = tl.load(at + c * width, mask=inside, other=float("-inf"))
        m_new = tl.maximum(m, part)
        base = tl.where(m_new == float("-inf"), 0.0, m_new)
        total = total * tl.exp2(m - base) + tl.exp2(part - base)
        m = m_new
    lse = tl.where(total > 0, m + tl.log2(tl.where(total > 0, total, 1.0)), float("inf"))
    tl.store(lse_ptr + slot.to(tl.int64) * width + cols, lse, mask=inside)


@triton.jit(
    do_not_specialize=[
        "n_q",
        "n_kv",
        "num_rows",
        "num_cols",
        "num_slots",
        "num_heads",
        "group",
        "stride",
        "width",
    ]
)
def block_mass_kernel(
    q_ptr,
    k_src,
    lse_ptr,  # float32: natural [B, Hq, Nq], or with SAMPLED base 2 [B*S, width]
    heads_ptr,  # int64 [B*S], -1 for an empty slot
    mass_ptr,  # float32 [B*S, R, C], zero on entry
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
    num_heads,
    group,
    stride,
    width,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    PER_ROW: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    CHUNK: tl.constexpr,
    DESC: tl.constexpr,
    SAMPLED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Mean softmax mass of ROWS block rows on CHUNK key blocks; grid (R / ROWS, C / CHUNK, B*S)."""
    SUB_M: tl.constexpr = PER_ROW // BM if PER_ROW > BM else 1
    ROWS: tl.constexpr = 1 if PER_ROW > BM else BM // PER_ROW
    SUB_N: tl.constexpr = BLOCK // BN
    slot = tl.program_id(2)
    head = tl.load(heads_ptr + slot).to(tl.int32)
    if head < 0:
        return
    batch = slot // num_slots
    q_offset = n_kv - n_q
    first_row = q_offset // BLOCK
    row = tl.program_id(0) * ROWS
    first = first_row + row
    last = first_row + tl.minimum(row + ROWS, num_rows) - 1
    beg = tl.program_id(1) * CHUNK
    end = tl.minimum(beg + CHUNK, last + 1)
    if beg >= end:
        return
    full = tl.minimum(end, first)
    ids = tl.arange(0, CHUNK)[None, :]
    # Row sums of each key block, one column a block: reduced over rows once, at the end.
    sums = tl.zeros([BM, CHUNK], tl.float32)
    for sub in range(SUB_M):
        slots = row * PER_ROW + sub * BM + tl.arange(0, BM)
        pos, valid = slot_positions(
            slots, first_row, num_rows, q_offset, n_kv, stride, BLOCK, PER_ROW, False
        )
        q = load_queries(
            q_ptr, batch, head, pos - q_offset, stride_qb, stride_qh, stride_qn, valid,
            HEAD_DIM, DIM,
        )  # fmt: skip
        if SAMPLED:
            at = slot.to(tl.int64) * width + slots
            lse = tl.load(lse_ptr + at, mask=valid, other=float("inf"))
        else:
            at = (batch * num_heads + head).to(tl.int64) * n_q + pos - q_offset
            lse = tl.load(lse_ptr + at, mask=valid, other=float("inf")) * LOG2_E
        for t in tl.range(beg * SUB_N, full * SUB_N):
            k = load_keys(
                k_src, batch, head // group, t * BN, stride_kb, stride_kh, stride_kn, n_kv,
                HEAD_DIM, DIM, BN, DESC, False,
            )  # fmt: skip
            s = tl.dot(q, k.T, input_precision=PRECISION)
            p = tl.exp2(s * scale_log2 - lse[:, None])
            sums += tl.where(ids == t // SUB_N - beg, tl.sum(p, 1)[:, None], 0.0)
        for t in tl.range(tl.maximum(beg, full) * SUB_N, end * SUB_N, num_stages=1):
            k = load_keys(
                k_src, batch, head // group, t * BN, stride_kb, stride_kh, stride_kn, n_kv,
                HEAD_DIM, DIM, BN, DESC, True,
            )  # fmt: skip
            s = tl.dot(q, k.T, input_precision=PRECISION)
            p = tl.exp2(s * scale_log2 - lse[:, None])
            p = tl.where(pos[:, None] >= (t * BN + tl.arange(0, BN))[None, :], p, 0.0)
            sums += tl.where(ids == t // SUB_N - beg, tl.sum(p, 1)[:, None], 0.0)

    rows = row + tl.arange(0, ROWS)
    start = tl.maximum((first_row + rows) * BLOCK, q_offset)
    stop = tl.minimum((first_row + rows + 1) * BLOCK, n_kv)
    count = tl.maximum((stop - 1 - start) // stride + 1, 1)  # rows past the last one have none
    mass = tl.sum(tl.reshape(sums, [ROWS, BM // ROWS, CHUNK]), 1) / count.to(tl.float32)[:, None]
    cols = beg + ids
    at = (slot.to(tl.int64) * num_rows + rows)[:, None] * num_cols + cols
    tl.store(mass_ptr + at, mass, mask=(rows < num_rows)[:, None] & (cols < end))
