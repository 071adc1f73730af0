"""Triton kernels of the last-block estimate: attention of the last queries on keys and distances.

The row log-sum-exp comes from `last_lse_kernel`, a chunk of keys a program, which
`join_lse_kernel` joins. Scores are computed transposed, keys by queries, in square tiles of T, so
that both sums run over queries, along a row of the tile. With P the position of the first query and
t the first key of a tile, the diagonals of a tile are the distances P - t - T < o < P - t + T.
The tile of the next T queries and the next T keys has the same distances: the tiles of one step,
one for each T queries, are added up before their diagonals are. Rotating every query column of the
sum by its number brings the distance P - t + d and the distance P - t + d - T into row d; they are
summed apart as `lower` and `upper`, so that a distance is one lower and one upper entry.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from sp_runtime.kernels.block_sparse import load_keys, load_queries


@triton.jit
def last_positions(slots, q_offset, n_kv, BLOCK):
    """The last BLOCK positions, ascending, and which of them are queries of this call."""
    pos = n_kv - BLOCK + slots
    return pos, pos >= q_offset


@triton.jit(do_not_specialize=["n_q", "n_kv", "num_heads", "group"])
def last_lse_kernel(
    q_ptr,
    k_src,
    part_ptr,  # float32 [B*H, chunks, BLOCK], base-2 log-sum-exp of one chunk of keys
    stride_qb,
    stride_qh,
    stride_qn,
    stride_kb,
    stride_kh,
    stride_kn,
    n_q,
    n_kv,
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
    """Log-sum-exp of BM of the last queries over CHUNK key blocks; grid (BLOCK / BM, chunks, B*H).

    A slot without a query, or that sees none of the keys, gets -inf.
    """
    SUB_N: tl.constexpr = BLOCK // BN
    slot = tl.program_id(2)
    batch = slot // num_heads
    head = slot % num_heads
    q_offset = n_kv - n_q
    slots = tl.program_id(0) * BM + tl.arange(0, BM)
    pos, valid = last_positions(slots, q_offset, n_kv, BLOCK)
    # Every position lies in the last two key blocks; those before need no mask.
    beg = tl.program_id(1) * CHUNK
    end = tl.minimum(beg + CHUNK, (n_kv - 1) // BLOCK + 1)
    full = tl.minimum(end, tl.maximum(n_kv - BLOCK, 0) // BLOCK)
    m = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    q = load_queries(
        q_ptr, batch, head, pos - q_offset, stride_qb, stride_qh, stride_qn, valid, HEAD_DIM, DIM
    )
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
    at = (slot.to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * BLOCK
    tl.store(part_ptr + at + slots, lse)


@triton.jit(do_not_specialize=["width", "chunks"])
def join_lse_kernel(part_ptr, lse_ptr, width, chunks, W: tl.constexpr, CHUNKS: tl.constexpr):
    """Join the chunks of one head: lse float32 [B*H, width], base 2; grid (width / W, B*H).

    A slot without a query gets +inf, which later turns its softmax into 0.
    """
    slot = tl.program_id(1)
    cols = tl.program_id(0) * W + tl.arange(0, W)
    m = tl.full([W], float("-inf"), tl.float32)
    total = tl.zeros([W], tl.float32)
    for start in range(0, chunks, CHUNKS):
        c = start + tl.arange(0, CHUNKS)
        at = (slot.to(tl.int64) * chunks + c)[:, None] * width + cols[None, :]
        inside = (c < chunks)[:, None] & (cols < width)[None, :]
        part = tl.load(part_ptr + at, mask=inside, other=float("-inf"))
        m_new = tl.maximum(m, tl.max(part, 0))
        base = tl.where(m_new == float("-inf"), 0.0, m_new)
        total = total * tl.exp2(m - base) + tl.sum(tl.exp2(part - base[None, :]), 0)
        m = m_new
    lse = tl.where(total > 0, m + tl.log2(tl.where(total > 0, total, 1.0)), float("inf"))
    tl.store(lse_ptr + slot.to(tl.int64) * width + cols, lse, mask=cols < width)


@triton.jit
def load_slots(
    q_ptr, lse_ptr, slot, batch, head, sub, stride_qb, stride_qh, stride_qn, n_q, n_kv,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """Queries [BM, DIM], log-sum-exp [BM] and positions [BM] of the sub-th tile of query slots."""
    slots = sub * BM + tl.arange(0, BM)
    pos, valid = last_positions(slots, n_kv - n_q, n_kv, BLOCK)
    q = load_queries(
        q_ptr, batch, head, pos - (n_kv - n_q), stride_qb, stride_qh, stride_qn, valid,
        HEAD_DIM, DIM,
    )  # fmt: skip
    return q, tl.load(lse_ptr + slot.to(tl.int64) * BLOCK + slots), pos


@triton.jit
def attend_tile(
    k_src, q, lse, pos, batch, kv_head, tile, tiles, stride_kb, stride_kh, stride_kn, n_kv,
    scale_log2, vertical_ptr,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, T: tl.constexpr, DESC: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Attention [T keys, T queries] of a key tile, whose column sums are stored; 0 outside."""
    keys = tile * T + tl.arange(0, T)
    # Out of range at both ends of the sequence of steps: some tile, made zero below.
    start = tl.minimum(tl.maximum(tile, 0), tiles - 1) * T
    k = load_keys(
        k_src, batch, kv_head, start, stride_kb, stride_kh, stride_kn, n_kv,
        HEAD_DIM, DIM, T, DESC, True,
    )  # fmt: skip
    s = tl.dot(k, q.T, input_precision=PRECISION)
    p = tl.exp2(s * scale_log2 - lse[None, :])
    # One comparison an element is cheaper here than a second body without it.
    last = tl.where(tile >= 0, pos, -1)
    p = tl.where(tl.maximum(keys, 0)[:, None] <= last[None, :], p, 0.0)
    tl.store(vertical_ptr + keys, tl.sum(p, 1), mask=(keys >= 0) & (keys < n_kv))
    return p


@triton.jit(do_not_specialize=["n_q", "n_kv", "num_heads", "group", "tiles"])
def estimate_kernel(
    q_ptr,
    k_src,
    lse_ptr,  # float32 [B*Hq, BLOCK], base 2, +inf where there is no query
    columns_ptr,  # float32 [BLOCK / T, B*Hq, N], sums over the queries of each tile
    part_ptr,  # float32 [B*Hq, 2 (lower, upper), tiles + BLOCK / T - 1, T]
    stride_qb,
    stride_qh,
    stride_qn,
    stride_kb,
    stride_kh,
    stride_kn,
    n_q,
    n_kv,
    num_heads,
    group,
    tiles,
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
    """Column sums and diagonal partials of CHUNK steps; grid (steps / CHUNK, B*Hq).

    Step u takes the key tile u - (BLOCK / T - 1) for the first queries, and the next ones for the
    next queries.
    """
    SUB: tl.constexpr = BLOCK // BM
    T: tl.constexpr = BN
    slot = tl.program_id(1)
    batch = slot // num_heads
    head = slot % num_heads
    kv_head = head // group
    steps = tiles + SUB - 1
    beg = tl.program_id(0) * CHUNK
    end = tl.minimum(beg + CHUNK, steps)
    columns = columns_ptr + slot.to(tl.int64) * n_kv
    next_columns = tl.num_programs(1).to(tl.int64) * n_kv
    part = part_ptr + slot.to(tl.int64) * (2 * T) * steps + tl.arange(0, T)
    d = tl.arange(0, T)[:, None]
    i = tl.arange(0, T)[None, :]
    q0, lse0, pos0 = load_slots(
        q_ptr, lse_ptr, slot, batch, head, 0, stride_qb, stride_qh, stride_qn, n_q, n_kv,
        HEAD_DIM, DIM, BLOCK, BM,
    )  # fmt: skip
    if SUB == 2:
        q1, lse1, pos1 = load_slots(
            q_ptr, lse_ptr, slot, batch, head, 1, stride_qb, stride_qh, stride_qn, n_q, n_kv,
            HEAD_DIM, DIM, BLOCK, BM,
        )  # fmt: skip
    for u in tl.range(beg, end):
        tile = u - (SUB - 1)
        p = attend_tile(
            k_src, q0, lse0, pos0, batch, kv_head, tile, tiles, stride_kb, stride_kh, stride_kn,
            n_kv, scale_log2, columns, HEAD_DIM, DIM, T, DESC, PRECISION,
        )  # fmt: skip
        if SUB == 2:
            p += attend_tile(
                k_src, q1, lse1, pos1, batch, kv_head, u, tiles, stride_kb, stride_kh, stride_kn,
                n_kv, scale_log2, columns + next_columns, HEAD_DIM, DIM, T, DESC, PRECISION,
            )  # fmt: skip
        elif SUB > 2:
            for sub in tl.range(1, SUB, num_stages=1):
                q, lse, pos = load_slots(
                    q_ptr, lse_ptr, slot, batch, head, sub, stride_qb, stride_qh, stride_qn,
                    n_q, n_kv, HEAD_DIM, DIM, BLOCK, BM,
                )  # fmt: skip
                p += attend_tile(
                    k_src, q, lse, pos, batch, kv_head, tile + sub, tiles, stride_kb, stride_kh,
                    stride_kn, n_kv, scale_log2, columns + sub * next_columns,
                    HEAD_DIM, DIM, T, DESC, PRECISION,
                )  # fmt: skip
        # T is a power of two: the mask is the remainder, of negative numbers as well.
        turned = tl.gather(p, (i - d) & (T - 1), 0)
        tl.store(part + u * T, tl.sum(tl.where(i >= d, turned, 0.0), 1))
        tl.store(part + (steps + u) * T, tl.sum(tl.where(i < d, turned, 0.0), 1))


@triton.jit(do_not_specialize=["n_q", "n_kv", "num_cols", "tiles"])
def finish_kernel(
    columns_ptr,  # float32 [BLOCK / T, B*Hq, N]
    part_ptr,  # float32 [B*Hq, 2, tiles + BLOCK / T - 1, T]
    vertical_ptr,  # float32 [B*Hq, N]
    slash_ptr,  # float32 [B*Hq, N]
    sums_ptr,  # float32 [2, B*Hq, C]
    n_q,
    n_kv,
    num_cols,
    tiles,
    BLOCK: tl.constexpr,
    T: tl.constexpr,
    W: tl.constexpr,
):
    """W keys (program_id(2) 0) or distances (1), and sums over blocks; grid (B*Hq, N / W, 2)."""
    SUB: tl.constexpr = BLOCK // T
    BINS: tl.constexpr = W // BLOCK
    slot = tl.program_id(0)
    which = tl.program_id(2)
    o = tl.program_id(1) * W + tl.arange(0, W)
    at = slot.to(tl.int64) * n_kv + o
    total = tl.zeros([W], tl.float32)
    if which == 0:
        for sub in tl.static_range(0, SUB):
            there = columns_ptr + sub * (tl.num_programs(0).to(tl.int64) * n_kv) + at
            total += tl.load(there, mask=o < n_kv, other=0.0)
        out = vertical_ptr
    else:
        steps = tiles + SUB - 1
        first = n_kv - BLOCK  # position of the first query
        # The step with 0 <= d < T: its first key is first - o + d, in tiles of T from SUB - 1 on.
        u = (first - o + (SUB * T) + T - 1) // T - 1
        d = o - first + (u - (SUB - 1)) * T
        part = part_ptr + slot.to(tl.int64) * (2 * T) * steps
        total += tl.load(part + u * T + d, mask=(o < n_kv) & (u < steps) & (u >= 0), other=0.0)
        upper = part + (steps + u - 1) * T + d
        total += tl.load(upper, mask=(o < n_kv) & (u >= 1) & (u <= steps), other=0.0)
        out = slash_ptr
    total = total / tl.minimum(n_q, BLOCK).to(tl.float32)
    tl.store(out + at, total, mask=o < n_kv)
    bins = tl.program_id(1) * BINS + tl.arange(0, BINS)
    sums = sums_ptr + (which * tl.num_programs(0) + slot).to(tl.int64) * num_cols + bins
    tl.store(sums, tl.sum(tl.reshape(total, [BINS, BLOCK]), 1), mask=bins < num_cols)
