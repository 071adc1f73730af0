"""Gluon block-sparse causal attention for Hopper (sm_90): one producer warp, two consumers.

Computes what `block_sparse.py` does, for heads of 64 or 128 in half precision and attention blocks
of 128. A query tile is one block row of one head. The producer copies its queries and listed key
blocks into shared memory through the tensor memory accelerator; each consumer, a warpgroup of four
warps, owns 64 of the 128 query rows.

K and V have a ring of STAGES slots each. Fill number i of a ring uses slot i % STAGES; the parity
of i // STAGES is the phase of its two barriers: "full" completes when the copy has landed, "empty"
when both consumers have released the slot. The fill count runs on across tiles, in the producer and
in the consumers alike, so that the next tile's copies start during the epilogue of this one. Q has
such a ring too, of Q_SLOTS slots, one fill a tile, and with it goes a note of what the tile is: the
producer alone reads the schedule and the index. A note of row -1 ends the consumers.

With a query offset that is no multiple of BLOCK the first block row is partial. Its tile starts at
query 0, as no copy may start at a negative coordinate, and reaches into the next block row, whose
queries are computed in vain: the output of block row 0 goes through a descriptor that ends with it.

Legend of shape suffixes: M = HALF query rows of a consumer, N = BLOCK key rows, D head dimension.

This module alone imports Gluon, which Triton calls experimental, and only Hopper imports it.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

BLOCK = 128
HALF = BLOCK // 2
SCAN = gl.constexpr(128)  # notes of `_take` read at once

# Triton renamed the copies after 3.6; the arguments used here are the same under both names.
_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
_store = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global


def tile_descriptor(
    tensor: Tensor, outer_strides: list[int], rows: int, length: int | None = None
) -> TensorDescriptor:
    """Tiles [1, 1, rows, D] of a half-precision [B, H, N, D]: reads past N give 0, writes nothing.

    outer_strides: of B, H and N, in elements. length: where N ends, if not with the tensor.
    """
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    shape = list(tensor.shape)
    if length is not None:
        shape[2] = length
    block = [1, 1, rows, tensor.shape[3]]
    return TensorDescriptor(tensor, shape, [*outer_strides, 1], block, layout)


@gluon.jit
def _row(flat, row_ptr, dense_ptr, num_rows, first_row):
    """Of a flat row: the start of its list, its number of blocks, its dense flag."""
    beg = gl.load(row_ptr + flat)
    end = gl.load(row_ptr + flat + 1)
    dense = gl.load(dense_ptr + flat).to(gl.int32)
    return beg, gl.where(dense != 0, first_row + flat % num_rows + 1, end - beg), dense


@gluon.jit
def _take(taken_ptr, num_tiles, seen):
    """The next tile of the schedule that no program has taken, num_tiles at the end of it.

    taken_ptr: a count, then a note for each tile. Where processes take turns on a GPU, the switch
    now and then loses what an atomic addition returns (seen on an H100 in about one call of fifty,
    with any memory order, and with compare-and-swap; never a load). The tile would be lost with
    it. So every tile taken is noted, and who finds the schedule at its end takes what nobody has
    noted. A tile that its taker has not noted yet is computed twice, to the same result.

    seen: all tiles before it are noted; the second result is its next value. Every call moves it
    on, so that the end of the schedule has few notes left to read. The counter hands over nothing
    else, so it needs no fence, which Triton's default memory order would put around it.
    """
    lanes = gl.arange(0, SCAN, layout=gl.BlockedLayout([SCAN // 32], [32], [1], [0]))
    i = seen + lanes
    noted = gl.load(taken_ptr + 1 + i, mask=i < num_tiles, other=1, volatile=True)
    t = gl.num_programs(0) + gl.atomic_add(taken_ptr, 1, sem="relaxed")
    seen += gl.min(noted, 0) * SCAN
    if (t < gl.num_programs(0)) | (t >= num_tiles):
        t = num_tiles
        while seen < num_tiles:
            i = seen + lanes
            note = gl.load(taken_ptr + 1 + i, mask=i < num_tiles, other=1, volatile=True)
            t = gl.min(gl.where(note == 0, i, num_tiles), 0)
            seen = gl.where(t < num_tiles, num_tiles, seen + SCAN)
        seen = gl.minimum(seen, t)
    if t < num_tiles:
        gl.store(taken_ptr + 1 + t, 1)
    return t, seen


@gluon.jit
def _fill(
    desc, batch, head, block, i, full, empty, smem,
    D: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Start fill i of a ring with key block `block`, once its slot is released."""
    slot = i % STAGES
    # A fresh barrier passes a wait for phase 1: the first STAGES fills do not wait.
    mbarrier.wait(empty.index(slot), ((i // STAGES) & 1) ^ 1)
    mbarrier.expect(full.index(slot), BLOCK * D * 2)
    _load(desc, [batch, head, block * BLOCK, 0], full.index(slot), smem.index(slot))


@gluon.jit
def _write(note, slot, flat, count):
    """The producer's note of a tile, released with the tile's queries."""
    one: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    note.index(2 * slot).store(gl.full([1], flat, gl.int32, one))
    note.index(2 * slot + 1).store(gl.full([1], count, gl.int32, one))


@gluon.jit
def _read(note, turn, q_full, Q_SLOTS: gl.constexpr):
    """(flat row, number of blocks) of a consumer's next tile, once its queries have landed."""
    one: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    slot = turn % Q_SLOTS
    mbarrier.wait(q_full.index(slot), (turn // Q_SLOTS) & 1)
    flat = gl.sum(note.index(2 * slot).load(one), 0)
    return flat, gl.sum(note.index(2 * slot + 1).load(one), 0)


@gluon.jit
def _producer(
    q_desc, k_desc, v_desc, q_smem, k_smem, v_smem,
    q_full, q_empty, k_full, k_empty, v_full, v_empty,
    note, order_ptr, row_ptr, col_ptr, dense_ptr, taken_ptr,
    num_tiles, num_rows, first_row, q_offset, num_heads, group,
    D: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr, Q_SLOTS: gl.constexpr,
    DYNAMIC: gl.constexpr,
):  # fmt: skip
    """Copy Q, K and V of each tile; V one block behind K, as the consumers take them."""
    HALF: gl.constexpr = BLOCK // 2
    fill = 0
    turn = 0
    t = gl.program_id(0)
    seen = gl.num_programs(0)
    flat = gl.load(order_ptr + t)
    beg, count, dense = _row(flat, row_ptr, dense_ptr, num_rows, first_row)
    while t < num_tiles:
        diagonal = first_row + flat % num_rows
        batch = flat // num_rows // num_heads
        head = flat // num_rows % num_heads
        kv_head = head // group
        # The diagonal is known without the list: its K and Q start before the list is read.
        _fill(k_desc, batch, kv_head, diagonal, fill, k_full, k_empty, k_smem, D, BLOCK, STAGES)
        # Walk the ascending list down from the diagonal, its last entry, reading one step ahead.
        listed = dense == 0
        at = count - 2
        following = gl.load(col_ptr + beg + at, mask=listed & (at >= 0), other=at)
        own = turn % Q_SLOTS
        mbarrier.wait(q_empty.index(own), ((turn // Q_SLOTS) & 1) ^ 1)
        _write(note, own, flat, count)
        mbarrier.expect(q_full.index(own), BLOCK * D * 2)
        query = gl.maximum(diagonal * BLOCK - q_offset, 0)
        _load(q_desc, [batch, head, query, 0], q_full.index(own), q_smem.index(2 * own))
        _load(q_desc, [batch, head, query + HALF, 0], q_full.index(own), q_smem.index(2 * own + 1))
        # Here the look-up waits with the first copies; later it would hold up the last V.
        next_t = t + gl.num_programs(0)
        if DYNAMIC:
            next_t, seen = _take(taken_ptr, num_tiles, seen)
        block = diagonal
        while at >= 0:
            current = following
            at -= 1
            following = gl.load(col_ptr + beg + at, mask=listed & (at >= 0), other=at)
            _fill(
                k_desc, batch, kv_head, current, fill + 1, k_full, k_empty, k_smem,
                D, BLOCK, STAGES,
            )  # fmt: skip
            _fill(v_desc, batch, kv_head, block, fill, v_full, v_empty, v_smem, D, BLOCK, STAGES)
            block = current
            fill += 1
        t = next_t
        if t < num_tiles:
            flat = gl.load(order_ptr + t)
            beg, count, dense = _row(flat, row_ptr, dense_ptr, num_rows, first_row)
        _fill(v_desc, batch, kv_head, block, fill, v_full, v_empty, v_smem, D, BLOCK, STAGES)
        fill += 1
        turn += 1
    own = turn % Q_SLOTS
    mbarrier.wait(q_empty.index(own), ((turn // Q_SLOTS) & 1) ^ 1)
    _write(note, own, -1, 0)
    mbarrier.arrive(q_full.index(own))


@gluon.jit
def _scores(q, k_smem, slot, M: gl.constexpr, N: gl.constexpr, D: gl.constexpr, S_L: gl.constexpr):
    """Start S = Q K^T of one ring slot, [M, N] float32; the accumulator is not read."""
    zeros = gl.zeros([M, N], gl.float32, S_L)
    k = k_smem.index(slot).reshape([N, D]).permute([1, 0])
    return warpgroup_mma(q, k, zeros, use_acc=False, is_async=True)


@gluon.jit
def _consumer(
    PART: gl.constexpr,
    out_desc, first_desc, q_smem, k_smem, v_smem, out_smem,
    q_full, q_empty, k_full, k_empty, v_full, v_empty,
    note, lse_ptr, num_rows, first_row, q_offset, q_len, num_heads, scale_log2,
    D: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr, Q_SLOTS: gl.constexpr,
    DTYPE: gl.constexpr,
):  # fmt: skip
    """Attention of query rows [PART * HALF, (PART + 1) * HALF) of each tile."""
    HALF: gl.constexpr = BLOCK // 2
    S_L: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK, 16]
    )
    O_L: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, D, 16]
    )
    # P goes from the accumulator of S to the operand of P V without leaving its registers.
    P_L: gl.constexpr = gl.DotOperandLayout(0, parent=O_L, k_width=2)
    rows = PART * HALF + gl.arange(0, HALF, layout=gl.SliceLayout(1, S_L))
    cols = gl.arange(0, BLOCK, layout=gl.SliceLayout(0, S_L))
    fill = 0
    turn = 0
    flat, count = _read(note, turn, q_full, Q_SLOTS)
    while flat >= 0:
        head_b = flat // num_rows
        diagonal = first_row + flat % num_rows
        query = gl.maximum(diagonal * BLOCK - q_offset, 0)
        # Of the tile's first query in its block row; not 0 in a partial first row.
        inner = query + q_offset - diagonal * BLOCK
        own = turn % Q_SLOTS
        q = q_smem.index(2 * own + PART).reshape([HALF, D])

        # The diagonal first: the maxima are finite before any unmasked block, so that the loop
        # needs no guard. Keys past the end are masked too, as no valid query sees them.
        slot = fill % STAGES
        mbarrier.wait(k_full.index(slot), (fill // STAGES) & 1)
        s = _scores(q, k_smem, slot, HALF, BLOCK, D, S_L)
        s = warpgroup_mma_wait(0, deps=(s,))
        mbarrier.arrive(k_empty.index(slot))
        visible = gl.expand_dims(inner + rows, 1) >= gl.expand_dims(cols, 0)
        s = gl.where(visible, s, float("-inf"))
        m = gl.max(s, 1) * scale_log2
        p = gl.exp2(s * scale_log2 - gl.expand_dims(m, 1))
        total = gl.sum(p, 1)
        p_half = gl.convert_layout(p.to(DTYPE), P_L, assert_trivial=True)
        acc = gl.zeros([HALF, D], gl.float32, O_L)

        # P V of the previous block runs during the exponentials of this one.
        for _ in range(1, count):
            following = (fill + 1) % STAGES
            slot = fill % STAGES
            mbarrier.wait(k_full.index(following), ((fill + 1) // STAGES) & 1)
            s = _scores(q, k_smem, following, HALF, BLOCK, D, S_L)
            mbarrier.wait(v_full.index(slot), (fill // STAGES) & 1)
            v = v_smem.index(slot).reshape([BLOCK, D])
            acc = warpgroup_mma(p_half, v, acc, is_async=True)
            s = warpgroup_mma_wait(1, deps=(s,))
            mbarrier.arrive(k_empty.index(following))
            m_new = gl.maximum(m, gl.max(s, 1) * scale_log2)
            p = gl.exp2(s * scale_log2 - gl.expand_dims(m_new, 1))
            alpha = gl.exp2(m - m_new)
            total = total * alpha + gl.sum(p, 1)
            m = m_new
            acc = warpgroup_mma_wait(0, deps=(acc,))
            mbarrier.arrive(v_empty.index(slot))
            alpha_o = gl.convert_layout(alpha, gl.SliceLayout(1, O_L), assert_trivial=True)
            acc = acc * gl.expand_dims(alpha_o, 1)
            p_half = gl.convert_layout(p.to(DTYPE), P_L, assert_trivial=True)
            fill += 1

        mbarrier.arrive(q_empty.index(own))
        slot = fill % STAGES
        mbarrier.wait(v_full.index(slot), (fill // STAGES) & 1)
        v = v_smem.index(slot).reshape([BLOCK, D])
        acc = warpgroup_mma(p_half, v, acc, is_async=True)
        # Stored while P V runs.
        lse = (m + gl.log2(total)) * 0.6931471805599453  # base 2 to natural logarithm
        q_rows = query + rows
        stored = (q_rows < q_len) & (inner + rows < BLOCK)
        gl.store(lse_ptr + head_b.to(gl.int64) * q_len + q_rows, lse, mask=stored)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(v_empty.index(slot))
        inverse = gl.convert_layout(1.0 / total, gl.SliceLayout(1, O_L), assert_trivial=True)
        acc = acc * gl.expand_dims(inverse, 1)
        tma.store_wait(0)  # of the previous tile, which used the same buffer
        out = out_smem.index(PART)
        out.reshape([HALF, D]).store(acc.to(DTYPE))
        fence_async_shared()
        at = [head_b // num_heads, head_b % num_heads, query + PART * HALF, 0]
        if diagonal == first_row:
            _store(first_desc, at, out)
        else:
            _store(out_desc, at, out)
        fill += 1
        turn += 1
        flat, count = _read(note, turn, q_full, Q_SLOTS)
    tma.store_wait(0)


@gluon.jit(
    do_not_specialize=[
        "num_tiles",
        "num_rows",
        "first_row",
        "q_offset",
        "q_len",
        "num_heads",
        "group",
    ]
)
def hopper_kernel(
    q_desc,  # [B, Hq, Nq, D] in tiles of HALF rows
    k_desc,  # [B, Hkv, Nk, D] in tiles of BLOCK rows
    v_desc,
    out_desc,  # [B, Hq, Nq, D] in tiles of HALF rows
    first_desc,  # the same, ending with the first block row
    lse_ptr,  # float32 [B, Hq, Nq] contiguous
    order_ptr,  # int32 [B*Hq*R], the (batch, head, row) of each tile of the schedule
    row_ptr,  # int32 [B*Hq*R + 1]
    col_ptr,  # int32 [capacity]
    dense_ptr,  # uint8 [B*Hq*R]
    taken_ptr,  # int32 [1 + num_tiles], zero on entry, see `_take`; unused without DYNAMIC
    num_tiles,
    num_rows,
    first_row,
    q_offset,
    q_len,
    num_heads,
    group,
    scale_log2,
    D: gl.constexpr,
    BLOCK: gl.constexpr,
    STAGES: gl.constexpr,
    Q_SLOTS: gl.constexpr,
    DYNAMIC: gl.constexpr,
):
    """Program p starts with tile p of the schedule; any number of programs.

    Then it takes the tiles p + programs, ..., or with DYNAMIC the next that no program has taken.
    """
    DTYPE: gl.constexpr = q_desc.dtype
    HALF: gl.constexpr = BLOCK // 2
    q_smem = gl.allocate_shared_memory(DTYPE, [2 * Q_SLOTS, 1, 1, HALF, D], q_desc.layout)
    k_smem = gl.allocate_shared_memory(DTYPE, [STAGES, 1, 1, BLOCK, D], k_desc.layout)
    v_smem = gl.allocate_shared_memory(DTYPE, [STAGES, 1, 1, BLOCK, D], v_desc.layout)
    out_smem = gl.allocate_shared_memory(DTYPE, [2, 1, 1, HALF, D], out_desc.layout)
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    q_full = gl.allocate_shared_memory(gl.int64, [Q_SLOTS, 1], barrier)
    q_empty = gl.allocate_shared_memory(gl.int64, [Q_SLOTS, 1], barrier)
    plain: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [0])
    note = gl.allocate_shared_memory(gl.int32, [2 * Q_SLOTS, 1], plain)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    # An arrival counts once for a whole warpgroup: "empty" takes one of each consumer.
    for i in gl.static_range(Q_SLOTS):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=2)
    fence_async_shared()
    # The first entry runs in the four warps of the launch, so that the producer needs one warp
    # only. Of the 168 registers a thread at launch, the producer keeps 24 and hands on the rest.
    gl.warp_specialize(
        [
            (_consumer, (
                0, out_desc, first_desc, q_smem, k_smem, v_smem, out_smem,
                q_full, q_empty, k_full, k_empty, v_full, v_empty,
                note, lse_ptr, num_rows, first_row, q_offset, q_len, num_heads, scale_log2,
                D, BLOCK, STAGES, Q_SLOTS, DTYPE,
            )),
            (_consumer, (
                1, out_desc, first_desc, q_smem, k_smem, v_smem, out_smem,
                q_full, q_empty, k_full, k_empty, v_full, v_empty,
                note, lse_ptr, num_rows, first_row, q_offset, q_len, num_heads, scale_log2,
                D, BLOCK, STAGES, Q_SLOTS, DTYPE,
            )),
            (_producer, (
                q_desc, k_desc, v_desc, q_smem, k_smem, v_smem,
                q_full, q_empty, k_full, k_empty, v_full, v_empty,
                note, order_ptr, row_ptr, col_ptr, dense_ptr, taken_ptr,
                num_tiles, num_rows, first_row, q_offset, num_heads, group,
                D, BLOCK, STAGES, Q_SLOTS, DYNAMIC,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
