"""Gluon block-sparse causal attention for Hopper (sm_90): one producer warp, two consumers.

Computes what `block_sparse.py` does, for heads of 64 or 128 in half precision, attention blocks of
128 and a query offset that is a multiple of 128. A query tile is one block row of one head. The
producer copies its queries and listed key blocks into shared memory through the tensor memory
accelerator; each consumer, a warpgroup of four warps, owns 64 of the 128 query rows.

K and V have a ring of STAGES slots each. Fill number i of a ring uses slot i % STAGES; the parity
of i // STAGES is the phase of its two barriers: "full" completes when the copy has landed, "empty"
when both consumers have released the slot. The fill count runs on across tiles, in the producer and
in the consumers alike, so that the next tile's copies start during the epilogue of this one.

Legend of shape suffixes: M = HALF query rows of a consumer, N = BLOCK key rows, D head dimension.

This module alone imports Gluon, which Triton calls experimental, and only Hopper imports it.
"""

# ruff: noqa: SIM113 -- device code has no enumerate
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

# Triton renamed the copies after 3.6; the arguments used here are the same under both names.
_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
_store = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global


def tile_descriptor(tensor: Tensor, outer_strides: list[int], rows: int) -> TensorDescriptor:
    """Tiles [1, 1, rows, D] of a half-precision [B, H, N, D]: reads past N give 0, writes nothing.

    outer_strides: of B, H and N, in elements.
    """
    layout = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
    block = [1, 1, rows, tensor.shape[3]]
    return TensorDescriptor(tensor, list(tensor.shape), [*outer_strides, 1], block, layout)


@gluon.jit
def _tile(t, order_ptr, row_ptr, dense_ptr, num_rows, first_row):
    """Entry t of the schedule: (flat row, start of its list, blocks, dense flag, diagonal)."""
    flat = gl.load(order_ptr + t)
    beg = gl.load(row_ptr + flat)
    end = gl.load(row_ptr + flat + 1)
    dense = gl.load(dense_ptr + flat).to(gl.int32)
    diagonal = first_row + flat % num_rows
    count = gl.where(dense != 0, diagonal + 1, end - beg)
    return flat, beg, count, dense, diagonal


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
def _producer(
    q_desc, k_desc, v_desc, q_smem, k_smem, v_smem,
    q_full, q_empty, k_full, k_empty, v_full, v_empty,
    order_ptr, row_ptr, col_ptr, dense_ptr,
    num_tiles, num_rows, first_row, num_heads, group,
    D: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """Copy Q, K and V of each tile; V one block behind K, as the consumers take them."""
    HALF: gl.constexpr = BLOCK // 2
    fill = 0
    turn = 0
    for t in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        flat, beg, count, dense, diagonal = _tile(
            t, order_ptr, row_ptr, dense_ptr, num_rows, first_row
        )
        batch = flat // num_rows // num_heads
        head = flat // num_rows % num_heads
        kv_head = head // group
        # The diagonal is known without the list: its K and Q start before the list is read.
        _fill(k_desc, batch, kv_head, diagonal, fill, k_full, k_empty, k_smem, D, BLOCK, STAGES)
        mbarrier.wait(q_empty, (turn & 1) ^ 1)
        mbarrier.expect(q_full, BLOCK * D * 2)
        # Never negative, as the query offset is a multiple of BLOCK.
        first_query = (diagonal - first_row) * BLOCK
        _load(q_desc, [batch, head, first_query, 0], q_full, q_smem.index(0))
        _load(q_desc, [batch, head, first_query + HALF, 0], q_full, q_smem.index(1))
        block = diagonal
        for step in range(1, count):
            # Walk the ascending list from its end; the diagonal was its last entry.
            at = count - 1 - step
            following = at
            if dense == 0:
                following = gl.load(col_ptr + beg + at)
            _fill(
                k_desc, batch, kv_head, following, fill + 1, k_full, k_empty, k_smem,
                D, BLOCK, STAGES,
            )  # fmt: skip
            _fill(v_desc, batch, kv_head, block, fill, v_full, v_empty, v_smem, D, BLOCK, STAGES)
            block = following
            fill += 1
        _fill(v_desc, batch, kv_head, block, fill, v_full, v_empty, v_smem, D, BLOCK, STAGES)
        fill += 1
        turn += 1


@gluon.jit
def _scores(q, k_smem, slot, M: gl.constexpr, N: gl.constexpr, D: gl.constexpr, S_L: gl.constexpr):
    """Start S = Q K^T of one ring slot, [M, N] float32; the accumulator is not read."""
    zeros = gl.zeros([M, N], gl.float32, S_L)
    k = k_smem.index(slot).reshape([N, D]).permute([1, 0])
    return warpgroup_mma(q, k, zeros, use_acc=False, is_async=True)


@gluon.jit
def _consumer(
    PART: gl.constexpr,
    out_desc, q_smem, k_smem, v_smem, out_smem,
    q_full, q_empty, k_full, k_empty, v_full, v_empty,
    lse_ptr, order_ptr, row_ptr, dense_ptr,
    num_tiles, num_rows, first_row, q_len, num_heads, scale_log2,
    D: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr, PIN: gl.constexpr,
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
    causal = gl.expand_dims(rows, 1) >= gl.expand_dims(cols, 0)
    fill = 0
    turn = 0
    for t in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        flat, _beg, count, _dense, diagonal = _tile(
            t, order_ptr, row_ptr, dense_ptr, num_rows, first_row
        )
        head_b = flat // num_rows
        first_query = (diagonal - first_row) * BLOCK
        q = q_smem.index(PART).reshape([HALF, D])

        # The diagonal first: the maxima are finite before any unmasked block, so that the loop
        # needs no guard. Keys past the end are masked too, as no valid query sees them.
        mbarrier.wait(q_full, turn & 1)
        slot = fill % STAGES
        mbarrier.wait(k_full.index(slot), (fill // STAGES) & 1)
        s = _scores(q, k_smem, slot, HALF, BLOCK, D, S_L)
        s = warpgroup_mma_wait(0, deps=(s,))
        mbarrier.arrive(k_empty.index(slot))
        s = gl.where(causal, s, float("-inf"))
        m = gl.max(s, 1) * scale_log2
        p = gl.exp2(s * scale_log2 - gl.expand_dims(m, 1))
        total = gl.sum(p, 1)
        p_half = gl.convert_layout(p.to(DTYPE), P_L, assert_trivial=True)
        acc = gl.zeros([HALF, D], gl.float32, O_L)
        if PIN:
            mbarrier.wait(
                k_full.index((fill + 1) % STAGES), ((fill + 1) // STAGES) & 1, pred=count > 1
            )

        # P V of the previous block runs during the exponentials of this one.
        for step in range(1, count):
            following = (fill + 1) % STAGES
            slot = fill % STAGES
            if not PIN:
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
            if PIN:
                # A branch ptxas cannot move the exponentials across, where it otherwise hoists the
                # wait for P V above them; the other consumer then covers for the lost overlap.
                mbarrier.wait(
                    k_full.index((fill + 2) % STAGES),
                    ((fill + 2) // STAGES) & 1,
                    pred=step + 1 < count,
                )
            acc = warpgroup_mma_wait(0, deps=(acc,))
            mbarrier.arrive(v_empty.index(slot))
            alpha_o = gl.convert_layout(alpha, gl.SliceLayout(1, O_L), assert_trivial=True)
            acc = acc * gl.expand_dims(alpha_o, 1)
            p_half = gl.convert_layout(p.to(DTYPE), P_L, assert_trivial=True)
            fill += 1

        mbarrier.arrive(q_empty)
        slot = fill % STAGES
        mbarrier.wait(v_full.index(slot), (fill // STAGES) & 1)
        v = v_smem.index(slot).reshape([BLOCK, D])
        acc = warpgroup_mma(p_half, v, acc, is_async=True)
        # Stored while P V runs.
        lse = (m + gl.log2(total)) * 0.6931471805599453  # base 2 to natural logarithm
        q_rows = first_query + rows
        gl.store(lse_ptr + head_b.to(gl.int64) * q_len + q_rows, lse, mask=q_rows < q_len)
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(v_empty.index(slot))
        inverse = gl.convert_layout(1.0 / total, gl.SliceLayout(1, O_L), assert_trivial=True)
        acc = acc * gl.expand_dims(inverse, 1)
        tma.store_wait(0)  # of the previous tile, which used the same buffer
        out = out_smem.index(PART)
        out.reshape([HALF, D]).store(acc.to(DTYPE))
        fence_async_shared()
        first = first_query + PART * HALF
        _store(out_desc, [head_b // num_heads, head_b % num_heads, first, 0], out)
        fill += 1
        turn += 1
    tma.store_wait(0)


@gluon.jit(
    do_not_specialize=["num_tiles", "num_rows", "first_row", "q_len", "num_heads", "group"],
)
def hopper_kernel(
    q_desc,  # [B, Hq, Nq, D] in tiles of HALF rows
    k_desc,  # [B, Hkv, Nk, D] in tiles of BLOCK rows
    v_desc,
    out_desc,  # [B, Hq, Nq, D] in tiles of HALF rows
    lse_ptr,  # float32 [B, Hq, Nq] contiguous
    order_ptr,  # int32 [B*Hq*R], the (batch, head, row) of each tile of the schedule
    row_ptr,  # int32 [B*Hq*R + 1]
    col_ptr,  # int32 [capacity]
    dense_ptr,  # uint8 [B*Hq*R]
    num_tiles,
    num_rows,
    first_row,
    q_len,
    num_heads,
    group,
    scale_log2,
    D: gl.constexpr,
    BLOCK: gl.constexpr,
    STAGES: gl.constexpr,
    PIN: gl.constexpr,
):
    """Program p takes the tiles p, p + programs, ... of the schedule; any number of programs."""
    DTYPE: gl.constexpr = q_desc.dtype
    HALF: gl.constexpr = BLOCK // 2
    q_smem = gl.allocate_shared_memory(DTYPE, [2, 1, 1, HALF, D], q_desc.layout)
    k_smem = gl.allocate_shared_memory(DTYPE, [STAGES, 1, 1, BLOCK, D], k_desc.layout)
    v_smem = gl.allocate_shared_memory(DTYPE, [STAGES, 1, 1, BLOCK, D], v_desc.layout)
    out_smem = gl.allocate_shared_memory(DTYPE, [2, 1, 1, HALF, D], out_desc.layout)
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    q_full = gl.allocate_shared_memory(gl.int64, [1], barrier)
    q_empty = gl.allocate_shared_memory(gl.int64, [1], barrier)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    # An arrival counts once for a whole warpgroup: "empty" takes one of each consumer.
    mbarrier.init(q_full, count=1)
    mbarrier.init(q_empty, count=2)
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
                0, out_desc, q_smem, k_smem, v_smem, out_smem,
                q_full, q_empty, k_full, k_empty, v_full, v_empty,
                lse_ptr, order_ptr, row_ptr, dense_ptr,
                num_tiles, num_rows, first_row, q_len, num_heads, scale_log2,
                D, BLOCK, STAGES, PIN, DTYPE,
            )),
            (_consumer, (
                1, out_desc, q_smem, k_smem, v_smem, out_smem,
                q_full, q_empty, k_full, k_empty, v_full, v_empty,
                lse_ptr, order_ptr, row_ptr, dense_ptr,
                num_tiles, num_rows, first_row, q_len, num_heads, scale_log2,
                D, BLOCK, STAGES, PIN, DTYPE,
            )),
            (_producer, (
                q_desc, k_desc, v_desc, q_smem, k_smem, v_smem,
                q_full, q_empty, k_full, k_empty, v_full, v_empty,
                order_ptr, row_ptr, col_ptr, dense_ptr,
                num_tiles, num_rows, first_row, num_heads, group,
                D, BLOCK, STAGES,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
