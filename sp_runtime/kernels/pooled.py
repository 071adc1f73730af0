"""Triton kernels of the query-aware choice: block means, the map that they make, and its mask.

The map is kept packed, causal entries alone: row r of R begins where row r - 1 ends and holds the
key blocks up to its diagonal, so that the search for a threshold reads no future block and ties
still go to the lower index. Every sum has a fixed order: results are bitwise repeatable.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from sp_runtime.kernels.select_blocks import load_bits, load_gamma


@triton.jit(do_not_specialize=["n_q", "n_kv", "num_rows", "num_cols", "num_slots", "num_kv_heads"])
def pool_kernel(
    q_ptr,
    k_ptr,
    heads_ptr,  # int64 [S], the query head of each slot; unused unless SELECTED
    queries_ptr,  # float32 [B, S, R + 1, D]
    keys_ptr,  # float32 [B, Hkv, C, D]
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
    num_kv_heads,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
    SELECTED: tl.constexpr,
    W: tl.constexpr,
):
    """Means of the queries of each block row, of the last queries, and of the keys of each block.

    Grid (C + 1, S + Hkv, B); block row R of a slot is the last min(BLOCK, n_q) queries.
    """
    number = tl.program_id(0)
    which = tl.program_id(1)
    batch = tl.program_id(2).to(tl.int64)
    of_query = which < num_slots
    if number >= tl.where(of_query, num_rows + 1, num_cols):
        return
    offset = tl.where(of_query, n_kv - n_q, 0)
    begin = tl.maximum((offset // BLOCK + number) * BLOCK, offset)
    end = tl.minimum((offset // BLOCK + number + 1) * BLOCK, n_kv)
    if of_query & (number == num_rows):
        begin = n_kv - tl.minimum(BLOCK, n_q)
        end = n_kv
    head = tl.where(of_query, which, which - num_slots).to(tl.int64)
    at = (batch * num_slots + head) * (num_rows + 1) + number
    source = q_ptr + batch * stride_qb
    stride_h = stride_qh
    stride = stride_qn
    out = queries_ptr + at * HEAD_DIM
    if SELECTED:
        head = tl.where(of_query, tl.load(heads_ptr + which, mask=of_query, other=0), head)
    if which >= num_slots:
        at = (batch * num_kv_heads + head) * num_cols + number
        source = k_ptr + batch * stride_kb
        stride_h = stride_kh
        stride = stride_kn
        out = keys_ptr + at * HEAD_DIM
    source += head * stride_h
    cols = tl.arange(0, DIM)
    total = tl.zeros([W, DIM], tl.float32)
    for start in tl.static_range(0, BLOCK, W):
        pos = begin + start + tl.arange(0, W)
        inside = (pos < end)[:, None] & (cols < HEAD_DIM)[None, :]
        rows = (pos - offset).to(tl.int64)[:, None] * stride + cols[None, :]
        total += tl.load(source + rows, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(total, 0) / (end - begin).to(tl.float32)
    tl.store(out + cols, mean, mask=cols < HEAD_DIM)


@triton.jit
def _scores(
    queries, inside, keys_ptr, start, num_cols, diagonal, scale_log2,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    STEP: tl.constexpr,
):  # fmt: skip
    """Base-2 scores [ROWS, COLS] of mean queries on mean keys; -inf after the diagonal [ROWS].

    queries: pointers to the rows [ROWS], `inside` those that exist. STEP: of the head dimension,
    which bounds the code of a product that runs without matrix units.
    """
    c = start + tl.arange(0, COLS)
    s = tl.zeros([ROWS, COLS], tl.float32)
    for first in range(0, DIM, STEP):
        d = first + tl.arange(0, STEP)
        q = tl.load(
            queries[:, None] + d[None, :], mask=inside[:, None] & (d < HEAD_DIM)[None, :], other=0.0
        )
        within = (c < num_cols)[:, None] & (d < HEAD_DIM)[None, :]
        k = tl.load(keys_ptr + c[:, None] * HEAD_DIM + d[None, :], mask=within, other=0.0)
        s = tl.dot(q, k.T, s, input_precision="ieee")
    return tl.where(c[None, :] <= diagonal[:, None], s * scale_log2, float("-inf"))


@triton.jit(
    do_not_specialize=[
        "gamma_b", "gamma_h", "num_rows", "num_cols", "num_slots", "num_kv_heads", "group", "count",
    ]
)  # fmt: skip
def pooled_map_kernel(
    queries_ptr,  # float32 [B, S, R + 1, D]
    keys_ptr,  # float32 [B, Hkv, C, D]
    heads_ptr,  # int64 [S], unused unless SELECTED
    map_ptr,  # float32 [B*S, count], packed
    gamma_ptr,
    gamma,
    gamma_b,
    gamma_h,
    num_rows,
    num_cols,
    num_slots,
    num_kv_heads,
    group,
    count,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    SELECTED: tl.constexpr,
    TENSOR: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    STEP: tl.constexpr,
):
    """Causal softmax of ROWS rows of mean queries on mean keys; grid (R / ROWS, B*S).

    A slot of gamma 0 has no map.
    """
    number = tl.program_id(1)
    batch = number // num_slots
    slot = number % num_slots
    if load_gamma(gamma_ptr, gamma, number, num_slots, gamma_b, gamma_h, TENSOR) <= 0:
        return
    head = slot
    if SELECTED:
        head = tl.load(heads_ptr + slot).to(tl.int32)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    first_row = num_cols - num_rows
    diagonal = tl.minimum(first_row + r, num_cols - 1)
    inside = r < num_rows
    queries = queries_ptr + (number.to(tl.int64) * (num_rows + 1) + r) * HEAD_DIM
    keys = keys_ptr + (batch * num_kv_heads + head // group).to(tl.int64) * num_cols * HEAD_DIM
    stop = tl.minimum(first_row + (tl.program_id(0) + 1) * ROWS, num_cols)
    m = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    for start in range(0, stop, COLS):  # block 0 is causal in every row: m is finite from here on
        s = _scores(
            queries, inside, keys, start, num_cols, diagonal, scale_log2,
            HEAD_DIM, DIM, ROWS, COLS, STEP,
        )  # fmt: skip
        m_new = tl.maximum(m, tl.max(s, 1))
        total = total * tl.exp2(m - m_new) + tl.sum(tl.exp2(s - m_new[:, None]), 1)
        m = m_new
    out = map_ptr + number.to(tl.int64) * count
    begin = r * (first_row + 1) + r * (r - 1) // 2
    for start in range(0, stop, COLS):
        s = _scores(
            queries, inside, keys, start, num_cols, diagonal, scale_log2,
            HEAD_DIM, DIM, ROWS, COLS, STEP,
        )  # fmt: skip
        c = start + tl.arange(0, COLS)
        seen = (c[None, :] <= diagonal[:, None]) & inside[:, None]
        share = tl.exp2(s - m[:, None]) / total[:, None]
        tl.store(out + begin[:, None] + c[None, :], share, mask=seen)


@triton.jit(
    do_not_specialize=[
        "gamma_b", "gamma_h", "num_rows", "num_cols", "num_slots", "num_masks", "count",
    ]
)  # fmt: skip
def query_aware_kernel(
    map_ptr,  # float32 [B*S, causal blocks], packed
    value_ptr,  # int32 [B*S, 2], of `map_crossing_kernel`
    mask_ptr,  # uint8 [B, K, R, C]
    slot_ptr,  # int64 [S], the mask of each; unused unless SLOTS, where S is K
    gamma_ptr,
    gamma,
    gamma_b,
    gamma_h,
    num_rows,
    num_cols,
    num_slots,
    num_masks,
    count,
    TENSOR: tl.constexpr,
    SLOTS: tl.constexpr,
    UNITE: tl.constexpr,
    W: tl.constexpr,
):
    """The blocks of the map that reach gamma, block 0 and the diagonal; grid (R, B*S).

    UNITE: they are added to those of the mask. A slot of gamma 0 adds nothing.
    """
    row = tl.program_id(0)
    number = tl.program_id(1)
    batch = number // num_slots
    slot = number % num_slots
    if load_gamma(gamma_ptr, gamma, number, num_slots, gamma_b, gamma_h, TENSOR) <= 0:
        return
    kept = tl.load(value_ptr + number * 2)
    last = tl.load(value_ptr + number * 2 + 1)
    mask = number.to(tl.int64)
    if SLOTS:
        mask = batch * num_masks + tl.load(slot_ptr + slot)
    causal = num_cols - num_rows + row + 1
    begin = row * (num_cols - num_rows + 1) + row * (row - 1) // 2
    source = map_ptr + number.to(tl.int64) * count + begin
    target = mask_ptr + (mask * num_rows + row) * num_cols
    for start in range(0, num_cols, W):
        c = start + tl.arange(0, W)
        _x, bits = load_bits(source, start, causal, W)
        on = (bits > kept) | ((bits == kept) & (begin + c <= last))
        on = (on | (c == 0) | (c == causal - 1)).to(tl.uint8)
        if UNITE:
            on |= tl.load(target + c, mask=c < num_cols, other=0)
        tl.store(target + c, on, mask=c < num_cols)


@triton.jit(do_not_specialize=["num_cols", "num_slots", "num_rows", "num_kv_heads", "group"])
def pooled_row_kernel(
    queries_ptr,  # float32 [B, S, R + 1, D]
    keys_ptr,  # float32 [B, Hkv, C, D]
    heads_ptr,  # int64 [S], unused unless SELECTED
    out_ptr,  # float32 [B*S, C]
    num_rows,
    num_cols,
    num_slots,
    num_kv_heads,
    group,
    scale_log2,
    HEAD_DIM: tl.constexpr,
    DIM: tl.constexpr,
    SELECTED: tl.constexpr,
    COLS: tl.constexpr,
):
    """Softmax of the mean of the last queries on the mean keys of all blocks; grid (B*S,)."""
    number = tl.program_id(0)
    head = number % num_slots
    if SELECTED:
        head = tl.load(heads_ptr + number % num_slots).to(tl.int32)
    kv_head = (number // num_slots) * num_kv_heads + head // group
    d = tl.arange(0, DIM)
    last = queries_ptr + (number.to(tl.int64) * (num_rows + 1) + num_rows) * HEAD_DIM
    q = tl.load(last + d, mask=d < HEAD_DIM, other=0.0)
    keys = keys_ptr + kv_head.to(tl.int64) * num_cols * HEAD_DIM
    out = out_ptr + number.to(tl.int64) * num_cols
    m = tl.full([COLS], float("-inf"), tl.float32)
    total = tl.zeros([COLS], tl.float32)
    for start in range(0, num_cols, COLS):
        s = _row_scores(q, keys, start, num_cols, scale_log2, HEAD_DIM, DIM, COLS)
        m_new = tl.maximum(m, s)
        base = tl.where(m_new == float("-inf"), 0.0, m_new)
        total = total * tl.exp2(m - base) + tl.exp2(s - base)
        m = m_new
    top = tl.max(m, 0)
    whole = tl.sum(total * tl.exp2(m - top), 0)
    for start in range(0, num_cols, COLS):
        s = _row_scores(q, keys, start, num_cols, scale_log2, HEAD_DIM, DIM, COLS)
        c = start + tl.arange(0, COLS)
        tl.store(out + c, tl.exp2(s - top) / whole, mask=c < num_cols)


@triton.jit
def _row_scores(
    q, keys_ptr, start, num_cols, scale_log2,
    HEAD_DIM: tl.constexpr, DIM: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Base-2 scores [COLS] of one mean query [DIM]; -inf from num_cols on."""
    c = start + tl.arange(0, COLS)
    d = tl.arange(0, DIM)
    inside = (c < num_cols)[:, None] & (d < HEAD_DIM)[None, :]
    k = tl.load(keys_ptr + c[:, None] * HEAD_DIM + d[None, :], mask=inside, other=0.0)
    return tl.where(c < num_cols, tl.sum(k * q[None, :], 1) * scale_log2, float("-inf"))
