"""Gluon block attention mass for Hopper (sm_90): Q K^T alone, given the dense row log-sum-exp.

Computes what `block_mass.py` does without sampling, for heads of 64 or 128 in half precision and
blocks of 128. A consumer owns one block row as two halves of 64 queries: the product of one half
runs during the exponentials of the other, and two consumers, which take neighbouring block rows,
cover for each other. Both read the same key blocks, so that a block is copied once for 256 queries.

A step is one key block of one pair of block rows. The steps of a head, pair after pair and
ascending in each, are cut into equal lengths, one a program: a single head fills the GPU. A program
walks its part of a pair from the last key block down. Each (row, block) has one writer and sums run
in a fixed order, so that results are bitwise repeatable.

Rings, phases and the shape suffixes are those of `hopper.py`.
"""


# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma_wait,
)

from sp_runtime.kernels.hopper import _fill, _load, _scores


@gluon.jit
def _steps_before(pair, first_row):
    """Steps of all pairs before this one: pair i has first_row + 2 * i + 2."""
    return pair * pair + pair * (first_row + 1)


@gluon.jit
def _pair_of(step, first_row):
    """The pair that holds a step: the root of the sum above, set right where it was rounded."""
    a = (first_row + 1).to(gl.float32)
    pair = ((gl.sqrt(a * a + 4.0 * step.to(gl.float32)) - a) * 0.5).to(gl.int32)
    pair = gl.where(_steps_before(pair, first_row) > step, pair - 1, pair)
    return gl.where(_steps_before(pair + 1, first_row) <= step, pair + 1, pair)


@gluon.jit
def _start(head, length, num_rows, first_row):
    """(First step, its pair) of this program; a pair past the last for an empty slot."""
    step = gl.program_id(0) * length
    return step, gl.where(head >= 0, _pair_of(step, first_row), num_rows)


@gluon.jit
def _span(step, end, pair, num_rows, first_row):
    """Key blocks [beg, stop) of a pair that lie in the steps [step, end)."""
    before = _steps_before(pair, first_row)
    blocks = first_row + gl.minimum(2 * pair + 2, num_rows)
    return step - before, gl.minimum(blocks, end - before)


@gluon.jit
def _mass_producer(
    q_desc, k_desc, q_smem, k_smem, q_full, q_empty, k_full, k_empty, heads_ptr,
    num_slots, num_rows, first_row, q_offset, group, length,
    D: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr, Q_SLOTS: gl.constexpr,
):  # fmt: skip
    """Copy the queries of each pair and the key blocks of its steps."""
    HALF: gl.constexpr = BLOCK // 2
    slot = gl.program_id(1)
    head = gl.load(heads_ptr + slot).to(gl.int32)
    batch = slot // num_slots
    step, pair = _start(head, length, num_rows, first_row)
    end = step + length
    fill = 0
    turn = 0
    while (step < end) & (2 * pair < num_rows):
        beg, stop = _span(step, end, pair, num_rows, first_row)
        at = turn % Q_SLOTS
        mbarrier.wait(q_empty.index(at), ((turn // Q_SLOTS) & 1) ^ 1)
        mbarrier.expect(q_full.index(at), 2 * BLOCK * D * 2)
        first = (first_row + 2 * pair) * BLOCK - q_offset
        for part in gl.static_range(2):
            # A partial first row starts at query 0: no copy at a negative coordinate.
            query = gl.maximum(first + part * BLOCK, 0)
            for half in gl.static_range(2):
                _load(
                    q_desc, [batch, head, query + half * HALF, 0],
                    q_full.index(at), q_smem.index(at * 4 + part * 2 + half),
                )  # fmt: skip
        for back in range(1, stop - beg + 1):
            _fill(
                k_desc, batch, head // group, stop - back, fill, k_full, k_empty, k_smem,
                D, BLOCK, STAGES,
            )  # fmt: skip
            fill += 1
        step += stop - beg
        pair += 1
        turn += 1


@gluon.jit
def _row_mass(s, scale_log2, lse):
    """Row sums [M] of the softmax of raw scores [M, N], lse base 2."""
    return gl.sum(gl.exp2(s * scale_log2 - gl.expand_dims(lse, 1)), 1)


@gluon.jit
def _masked(s, cols, limit):
    """Scores [M, N], -inf where the key [N] lies past the limit [M] of the query."""
    return gl.where(gl.expand_dims(cols, 0) <= gl.expand_dims(limit, 1), s, float("-inf"))


@gluon.jit
def _mass_consumer(
    PART: gl.constexpr,
    q_smem, k_smem, q_full, q_empty, k_full, k_empty, heads_ptr, lse_ptr, mass_ptr,
    num_slots, num_rows, first_row, q_offset, q_len, num_heads, scale_log2, length,
    D: gl.constexpr, BLOCK: gl.constexpr, STAGES: gl.constexpr, Q_SLOTS: gl.constexpr,
):  # fmt: skip
    """The mass of block rows 2 * pair + PART."""
    HALF: gl.constexpr = BLOCK // 2
    S_L: gl.constexpr = gl.NVMMADistributedLayout(
        version=[3, 0], warps_per_cta=[4, 1], instr_shape=[16, BLOCK, 16]
    )
    rows = gl.arange(0, HALF, layout=gl.SliceLayout(1, S_L))
    cols = gl.arange(0, BLOCK, layout=gl.SliceLayout(0, S_L))
    slot = gl.program_id(1)
    head = gl.load(heads_ptr + slot).to(gl.int32)
    lse_at = lse_ptr + (slot // num_slots * num_heads + head).to(gl.int64) * q_len
    step, pair = _start(head, length, num_rows, first_row)
    end = step + length
    fill = 0
    turn = 0
    while (step < end) & (2 * pair < num_rows):
        beg, stop = _span(step, end, pair, num_rows, first_row)
        row = 2 * pair + PART
        diagonal = first_row + row
        # Nothing to compute past the diagonal, nor in a row past the last.
        mine = gl.maximum(gl.minimum(stop, diagonal + 1), beg)
        mine = gl.where(row < num_rows, mine, beg)
        at = turn % Q_SLOTS
        mbarrier.wait(q_full.index(at), (turn // Q_SLOTS) & 1)
        for _ in range(mine, stop):  # the other consumer's blocks
            ring = fill % STAGES
            mbarrier.wait(k_full.index(ring), (fill // STAGES) & 1)
            mbarrier.arrive(k_empty.index(ring))
            fill += 1
        if mine > beg:
            # Queries of this block row only: others get +inf, a softmax of 0.
            query = gl.maximum(diagonal * BLOCK - q_offset, 0)
            bound = gl.minimum((diagonal + 1) * BLOCK - q_offset, q_len)
            first = query + rows
            lse0 = gl.load(lse_at + first, mask=first < bound, other=float("inf"))
            lse1 = gl.load(lse_at + first + HALF, mask=first + HALF < bound, other=float("inf"))
            lse0 = lse0 * 1.4426950408889634  # natural logarithm to base 2
            lse1 = lse1 * 1.4426950408889634
            inverse = 1.0 / (bound - query).to(gl.float32)
            mass_at = mass_ptr + (slot.to(gl.int64) * num_rows + row) * (first_row + num_rows)
            q0 = q_smem.index(at * 4 + PART * 2).reshape([HALF, D])
            q1 = q_smem.index(at * 4 + PART * 2 + 1).reshape([HALF, D])

            # The last block, which alone can be the diagonal.
            last = mine - 1
            limit = first + q_offset - last * BLOCK  # last key that a query sees
            ring = fill % STAGES
            mbarrier.wait(k_full.index(ring), (fill // STAGES) & 1)
            s0 = _scores(q0, k_smem, ring, HALF, BLOCK, D, S_L)
            s0 = warpgroup_mma_wait(0, deps=(s0,))
            s1 = _scores(q1, k_smem, ring, HALF, BLOCK, D, S_L)
            s0 = _masked(s0, cols, limit)
            sum0 = _row_mass(s0, scale_log2, lse0)
            fill += 1
            mbarrier.wait(k_full.index(fill % STAGES), (fill // STAGES) & 1, pred=mine - beg > 1)
            s1 = warpgroup_mma_wait(0, deps=(s1,))
            mbarrier.arrive(k_empty.index(ring))
            s1 = _masked(s1, cols, limit + HALF)
            # The products of one half run during the exponentials of the other.
            for back in range(1, mine - beg):
                ring = fill % STAGES
                s0 = _scores(q0, k_smem, ring, HALF, BLOCK, D, S_L)
                mass = gl.sum(sum0 + _row_mass(s1, scale_log2, lse1), 0)
                gl.store(mass_at + mine - back, mass * inverse)
                s0 = warpgroup_mma_wait(0, deps=(s0,))
                s1 = _scores(q1, k_smem, ring, HALF, BLOCK, D, S_L)
                sum0 = _row_mass(s0, scale_log2, lse0)
                fill += 1
                # A branch that ptxas does not move the exponentials across: it would
                # raise the wait for the product above them.
                mbarrier.wait(
                    k_full.index(fill % STAGES),
                    (fill // STAGES) & 1,
                    pred=back + 1 < mine - beg,
                )
                s1 = warpgroup_mma_wait(0, deps=(s1,))
                mbarrier.arrive(k_empty.index(ring))
            mbarrier.arrive(q_empty.index(at))
            mass = gl.sum(sum0 + _row_mass(s1, scale_log2, lse1), 0)
            gl.store(mass_at + beg, mass * inverse)
        else:
            mbarrier.arrive(q_empty.index(at))
        step += stop - beg
        pair += 1
        turn += 1


@gluon.jit(
    do_not_specialize=[
        "num_slots",
        "num_rows",
        "first_row",
        "q_offset",
        "q_len",
        "num_heads",
        "group",
        "length",
    ],
)
def hopper_mass_kernel(
    q_desc,  # [B, Hq, Nq, D] in tiles of HALF rows
    k_desc,  # [B, Hkv, Nk, D] in tiles of BLOCK rows
    heads_ptr,  # int64 [B*S], -1 for an empty slot
    lse_ptr,  # float32 [B, Hq, Nq] contiguous, natural
    mass_ptr,  # float32 [B*S, R, C], zero on entry
    num_slots,  # S
    num_rows,
    first_row,
    q_offset,
    q_len,
    num_heads,
    group,
    scale_log2,
    length,  # steps of a program
    D: gl.constexpr,
    BLOCK: gl.constexpr,
    STAGES: gl.constexpr,
    Q_SLOTS: gl.constexpr,
):
    """Grid (ceil(steps of a head / length), B * S); program (p, s) takes unit p of slot s."""
    DTYPE: gl.constexpr = q_desc.dtype
    HALF: gl.constexpr = BLOCK // 2
    q_smem = gl.allocate_shared_memory(DTYPE, [Q_SLOTS * 4, 1, 1, HALF, D], q_desc.layout)
    k_smem = gl.allocate_shared_memory(DTYPE, [STAGES, 1, 1, BLOCK, D], k_desc.layout)
    barrier: gl.constexpr = mbarrier.MBarrierLayout()
    q_full = gl.allocate_shared_memory(gl.int64, [Q_SLOTS, 1], barrier)
    q_empty = gl.allocate_shared_memory(gl.int64, [Q_SLOTS, 1], barrier)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barrier)
    for i in gl.static_range(Q_SLOTS):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=2)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=2)
    fence_async_shared()
    gl.warp_specialize(
        [
            (_mass_consumer, (
                0, q_smem, k_smem, q_full, q_empty, k_full, k_empty, heads_ptr, lse_ptr, mass_ptr,
                num_slots, num_rows, first_row, q_offset, q_len, num_heads, scale_log2, length,
                D, BLOCK, STAGES, Q_SLOTS,
            )),
            (_mass_consumer, (
                1, q_smem, k_smem, q_full, q_empty, k_full, k_empty, heads_ptr, lse_ptr, mass_ptr,
                num_slots, num_rows, first_row, q_offset, q_len, num_heads, scale_log2, length,
                D, BLOCK, STAGES, Q_SLOTS,
            )),
            (_mass_producer, (
                q_desc, k_desc, q_smem, k_smem, q_full, q_empty, k_full, k_empty, heads_ptr,
                num_slots, num_rows, first_row, q_offset, group, length,
                D, BLOCK, STAGES, Q_SLOTS,
            )),
        ],
        [4, 1],
        [232, 40],
    )  # fmt: skip
