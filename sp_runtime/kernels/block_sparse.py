"""Triton block-sparse causal attention over the key blocks of a CSR index, a query tile a program.

Legend of shape suffixes: M query rows of the tile, N key rows of a tile, D padded head dimension.

Only the diagonal block is masked: every listed block left of it lies wholly in the past, and the
ragged end of the keys can only fall into the diagonal block of the last row. The diagonal comes
first, so that the running maximum is finite before any other block and the loop needs no guard.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_keys(
    src,
    batch,
    head,
    start,
    stride_b,
    stride_h,
    stride_n,
    n_kv,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BN: tl.constexpr,
    DESC: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """Rows [start, start + BN) of one KV head, [BN, DIM]; rows and columns outside read as 0.

    src: a pointer to [B, Hkv, N, D] with the given strides, or a descriptor of blocks
    [1, 1, BN, DIM] (DESC), for which the hardware does the zero fill. Without RAGGED all rows must
    be inside the keys.
    """
    if DESC:
        return src.load([batch, head, start, 0]).reshape(BN, DIM)
    else:
        rows = tl.arange(0, BN)
        cols = tl.arange(0, DIM)
        # int64: N * stride passes 2^31 from 512k tokens of 32 heads of 128 on.
        base = src + batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h
        base += tl.cast(start, tl.int64) * stride_n
        ptrs = base + rows[:, None] * stride_n + cols[None, :]
        if RAGGED:
            inside = (start + rows < n_kv)[:, None]
            if HEAD_DIM < DIM:
                inside = inside & (cols < HEAD_DIM)[None, :]
            return tl.load(ptrs, mask=inside, other=0.0)
        elif HEAD_DIM < DIM:
            return tl.load(ptrs, mask=(cols < HEAD_DIM)[None, :], other=0.0)
        else:
            return tl.load(ptrs)


@triton.jit
def load_queries(
    q_ptr,
    batch,
    head,
    rows,
    stride_b,
    stride_h,
    stride_n,
    valid,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
):
    """Rows `rows` [M] (indices into q) of one query head, [M, DIM]; 0 where not valid."""
    cols = tl.arange(0, DIM)
    base = q_ptr + batch.to(tl.int64) * stride_b + head.to(tl.int64) * stride_h
    ptrs = base + rows.to(tl.int64)[:, None] * stride_n + cols[None, :]
    inside = valid[:, None]
    if HEAD_DIM < DIM:
        inside = inside & (cols < HEAD_DIM)[None, :]
    return tl.load(ptrs, mask=inside, other=0.0)


@triton.jit
def softmax_step(scores, m, total, scale_log2):
    """One online-softmax step in the base-2 domain: scores [M, N] raw, m and total [M].

    Returns p [M, N] relative to the new maximum, the new m and total, and the rescale factor [M].
    """
    m_new = tl.maximum(m, tl.max(scores, 1) * scale_log2)
    p = tl.exp2(scores * scale_log2 - m_new[:, None])
    alpha = tl.exp2(m - m_new)
    return p, m_new, total * alpha + tl.sum(p, 1), alpha


@triton.jit(do_not_specialize=["n_q", "n_kv", "num_rows", "num_heads", "group"])
def block_sparse_kernel(
    q_ptr,
    k_src,
    v_src,
    out_ptr,  # [B, Nq, Hq, HEAD_DIM] contiguous
    lse_ptr,  # float32 [B, Hq, Nq] contiguous
    row_ptr,  # int32 [B*Hq*R + 1]
    col_ptr,  # int32 [capacity]
    dense_ptr,  # uint8 [B*Hq*R]
    order_ptr,  # int32 [B*Hq*R], the (batch, head, row) each program takes; unused unless ORDERED
    stride_qb,
    stride_qh,
    stride_qn,
    stride_kb,
    stride_kh,
    stride_kn,
    stride_vb,
    stride_vh,
    stride_vn,
    n_q,
    n_kv,
    num_rows,
    num_heads,
    group,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    DESC: tl.constexpr,
    ROTATE: tl.constexpr,
    ORDERED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    SUB_M: tl.constexpr = BLOCK // BM
    SUB_N: tl.constexpr = BLOCK // BN

    pid = tl.program_id(0)
    work = pid // SUB_M
    if ORDERED:
        flat = tl.load(order_ptr + work)
        row = flat % num_rows
        head_b = flat // num_rows
        head = head_b % num_heads
        batch = head_b // num_heads
    else:
        # Sections of one KV head, long rows first, and innermost the query heads that share its
        # keys: they walk much the same blocks at the same time, so K and V come from L2.
        row = num_rows - 1 - (work // group) % num_rows
        section = work // (group * num_rows)
        kv_heads = num_heads // group
        head = (section % kv_heads) * group + work % group
        batch = section // kv_heads
        flat = (batch * num_heads + head) * num_rows + row
    kv_head = head // group

    q_offset = n_kv - n_q
    diagonal = q_offset // BLOCK + row  # absolute block row, and its diagonal key block
    first = diagonal * BLOCK + (pid % SUB_M) * BM  # absolute position of the tile's first query
    pos = first + tl.arange(0, BM)
    q_rows = pos - q_offset
    valid = (q_rows >= 0) & (q_rows < n_q)
    q = load_queries(
        q_ptr, batch, head, q_rows, stride_qb, stride_qh, stride_qn, valid, HEAD_DIM, DIM
    )

    # A dense row takes block j at step j, a listed row the j-th entry of its list. The diagonal
    # (the last entry) is done apart. `other=j` makes both one load, without a branch.
    beg = tl.load(row_ptr + flat)
    listed = tl.load(row_ptr + flat + 1) - beg - 1
    is_listed = tl.load(dense_ptr + flat) == 0
    num_full = tl.where(is_listed, listed, diagonal)
    num_tiles = num_full * SUB_N
    cols_ptr = col_ptr + beg
    start = tl.load(cols_ptr, mask=is_listed & (num_full > 0), other=0) * BLOCK

    m = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, DIM], tl.float32)

    if ROTATE:
        # PV of the previous tile is issued after QK of this one and first needed after the next QK,
        # so that it runs during the exponentials. P, its rescale factor and the tile's start are
        # carried one iteration; P stays float32 until its use, which keeps it in registers.
        prev = diagonal * BLOCK
        k = load_keys(
            k_src, batch, kv_head, prev, stride_kb, stride_kh, stride_kn, n_kv,
            HEAD_DIM, DIM, BN, DESC, True,
        )  # fmt: skip
        s = tl.dot(q, k.T, input_precision=PRECISION)
        # The left part of the diagonal block holds a visible key for every row: m is finite.
        s = tl.where(pos[:, None] >= (prev + tl.arange(0, BN))[None, :], s, float("-inf"))
        p, m, total, alpha = softmax_step(s, m, total, scale_log2)
        for u in tl.range(1, SUB_N, num_stages=1):
            tile = diagonal * BLOCK + u * BN
            k = load_keys(
                k_src, batch, kv_head, tile, stride_kb, stride_kh, stride_kn, n_kv,
                HEAD_DIM, DIM, BN, DESC, True,
            )  # fmt: skip
            v = load_keys(
                v_src, batch, kv_head, prev, stride_vb, stride_vh, stride_vn, n_kv,
                HEAD_DIM, DIM, BN, DESC, True,
            )  # fmt: skip
            s = tl.dot(q, k.T, input_precision=PRECISION)
            acc *= alpha[:, None]
            acc = tl.dot(p.to(q.dtype), v, acc, input_precision=PRECISION)
            s = tl.where(pos[:, None] >= (tile + tl.arange(0, BN))[None, :], s, float("-inf"))
            p, m, total, alpha = softmax_step(s, m, total, scale_log2)
            prev = tile
        for t in tl.range(0, num_tiles):
            # The next index is read one tile ahead: its latency hides behind this tile.
            j = (t + 1) // SUB_N
            block = tl.load(cols_ptr + j, mask=is_listed & (j < num_full), other=j)
            k = load_keys(
                k_src, batch, kv_head, start, stride_kb, stride_kh, stride_kn, n_kv,
                HEAD_DIM, DIM, BN, DESC, False,
            )  # fmt: skip
            # The first of these tiles is the diagonal's last, which may be ragged.
            v = load_keys(
                v_src, batch, kv_head, prev, stride_vb, stride_vh, stride_vn, n_kv,
                HEAD_DIM, DIM, BN, DESC, True,
            )  # fmt: skip
            s = tl.dot(q, k.T, input_precision=PRECISION)
            acc *= alpha[:, None]
            acc = tl.dot(p.to(q.dtype), v, acc, input_precision=PRECISION)
            p, m, total, alpha = softmax_step(s, m, total, scale_log2)
            # Never changes start, which is under n_kv: the pipeliner refuses a loop that yields one
            # of its carried values as it is.
            prev = tl.minimum(start, n_kv)
            start = block * BLOCK + ((t + 1) % SUB_N) * BN
        v = load_keys(
            v_src, batch, kv_head, prev, stride_vb, stride_vh, stride_vn, n_kv,
            HEAD_DIM, DIM, BN, DESC, True,
        )  # fmt: skip
        acc *= alpha[:, None]
        acc = tl.dot(p.to(q.dtype), v, acc, input_precision=PRECISION)
    else:
        for u in tl.range(0, SUB_N, num_stages=1):
            tile = diagonal * BLOCK + u * BN
            k = load_keys(
                k_src, batch, kv_head, tile, stride_kb, stride_kh, stride_kn, n_kv,
                HEAD_DIM, DIM, BN, DESC, True,
            )  # fmt: skip
            s = tl.dot(q, k.T, input_precision=PRECISION)
            s = tl.where(pos[:, None] >= (tile + tl.arange(0, BN))[None, :], s, float("-inf"))
            p, m, total, alpha = softmax_step(s, m, total, scale_log2)
            acc *= alpha[:, None]
            v = load_keys(
                v_src, batch, kv_head, tile, stride_vb, stride_vh, stride_vn, n_kv,
                HEAD_DIM, DIM, BN, DESC, True,
            )  # fmt: skip
            acc = tl.dot(p.to(q.dtype), v, acc, input_precision=PRECISION)
        for t in tl.range(0, num_tiles):
            j = (t + 1) // SUB_N
            block = tl.load(cols_ptr + j, mask=is_listed & (j < num_full), other=j)
            k = load_keys(
                k_src, batch, kv_head, start, stride_kb, stride_kh, stride_kn, n_kv,
                HEAD_DIM, DIM, BN, DESC, False,
            )  # fmt: skip
            s = tl.dot(q, k.T, input_precision=PRECISION)
            p, m, total, alpha = softmax_step(s, m, total, scale_log2)
            acc *= alpha[:, None]
            v = load_keys(
                v_src, batch, kv_head, start, stride_vb, stride_vh, stride_vn, n_kv,
                HEAD_DIM, DIM, BN, DESC, False,
            )  # fmt: skip
            acc = tl.dot(p.to(q.dtype), v, acc, input_precision=PRECISION)
            start = block * BLOCK + ((t + 1) % SUB_N) * BN

    acc = acc / total[:, None]
    lse = (m + tl.log2(total)) * 0.6931471805599453  # base 2 to natural logarithm
    tl.store(lse_ptr + (batch * num_heads + head).to(tl.int64) * n_q + q_rows, lse, mask=valid)
    cols = tl.arange(0, DIM)
    rows_64 = batch.to(tl.int64) * n_q + q_rows
    out_ptrs = out_ptr + ((rows_64 * num_heads + head) * HEAD_DIM)[:, None] + cols[None, :]
    tl.store(
        out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=valid[:, None] & (cols < HEAD_DIM)[None, :]
    )
