"""Triton kernel for the exact block attention mass, from the row log-sum-exp and one pass over K.

Each output element has one writer, and sums run in a fixed order: results are bitwise repeatable.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from sp_runtime.kernels.block_sparse import load_keys, load_queries

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit(
    do_not_specialize=["n_q", "n_kv", "num_rows", "num_cols", "num_slots", "num_heads", "group"]
)
def block_mass_kernel(
    q_ptr,
    k_src,
    lse_ptr,  # float32 [B, Hq, Nq], natural
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
    scale_log2,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    CHUNK: tl.constexpr,
    DESC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Mean softmax mass of a block row on CHUNK key blocks; grid (R, C / CHUNK, B*S)."""
    SUB_N: tl.constexpr = BLOCK // BN
    slot = tl.program_id(2)
    head = tl.load(heads_ptr + slot).to(tl.int32)
    if head < 0:
        return
    batch = slot // num_slots
    q_offset = n_kv - n_q
    row = tl.program_id(0)
    diagonal = q_offset // BLOCK + row
    beg = tl.program_id(1) * CHUNK
    end = tl.minimum(beg + CHUNK, diagonal + 1)
    if beg >= end:
        return
    full = tl.minimum(end, diagonal)
    ids = tl.arange(0, CHUNK)[None, :]
    # Row sums of each key block, one column a block: reduced over rows once, at the end.
    sums = tl.zeros([BM, CHUNK], tl.float32)
    for sub in range(BLOCK // BM):
        pos = diagonal * BLOCK + sub * BM + tl.arange(0, BM)
        valid = (pos >= q_offset) & (pos < n_kv)
        q = load_queries(
            q_ptr, batch, head, pos - q_offset, stride_qb, stride_qh, stride_qn, valid,
            HEAD_DIM, DIM,
        )  # fmt: skip
        at = (batch * num_heads + head).to(tl.int64) * n_q + pos - q_offset
        # A slot without a query: +inf turns its softmax into 0.
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
    start = tl.maximum(diagonal * BLOCK, q_offset)
    count = tl.minimum((diagonal + 1) * BLOCK, n_kv) - start
    cols = beg + tl.arange(0, CHUNK)
    at = (slot.to(tl.int64) * num_rows + row) * num_cols + cols
    tl.store(mass_ptr + at, tl.sum(sums, 0) / count.to(tl.float32), mask=cols < end)
