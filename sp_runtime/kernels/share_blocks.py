"""Triton kernels of pattern sharing: likeness tests, roles, and lending and keeping of masks.

They do in one launch each what takes some twenty small tensor operations: at the lengths where
sparse prefill starts to pay, a layer's time is the time of its launches.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(
    do_not_specialize=["num_cols", "num_heads", "num_others"],
    do_not_specialize_on_alignment=["rows_ptr"],  # half of a larger tensor
)
def close_rows_kernel(
    rows_ptr,  # float32 [B*H, C]
    others_ptr,  # float32 [B*K, C]; unused with UNIFORM
    which_ptr,  # int64 [H], the other row of each head; unused with UNIFORM
    out_ptr,  # uint8 [B*H]
    num_cols,
    num_heads,
    num_others,
    limit,
    UNIFORM: tl.constexpr,
    W: tl.constexpr,
):
    """Whether the square root of the Jensen-Shannon divergence is under `limit`; grid (B*H,)."""
    head_b = tl.program_id(0)
    rows = rows_ptr + head_b.to(tl.int64) * num_cols
    others = others_ptr
    if not UNIFORM:
        other = tl.load(which_ptr + head_b % num_heads)
        others += ((head_b // num_heads) * num_others + other) * num_cols
    close = row_distance(rows, others, num_cols, UNIFORM, W) < limit
    tl.store(out_ptr + head_b, close.to(tl.uint8))


@triton.jit(
    do_not_specialize=["num_cols", "num_heads", "num_lenders"],
    do_not_specialize_on_alignment=["rows_ptr"],  # half of a larger tensor
)
def borrow_roles_kernel(
    rows_ptr,  # float32 [B*H, C]
    lent_ptr,  # float32 [B*K, C]
    borrows_ptr,  # uint8 [H]
    row_ptr,  # int64 [H], the lent row of each borrower
    slots_ptr,  # int64 [H]
    own_ptr,  # int64 [H]
    gamma_ptr,  # float32 [H]
    fallback_ptr,  # float32 [H]
    branch_ptr,  # uint8 [H]
    slots_out_ptr,  # int64 [B*H]
    gamma_out_ptr,  # float32 [B*H]
    branch_out_ptr,  # uint8 [B*H]
    onto_ptr,  # int64 [B*H]
    num_cols,
    num_heads,
    num_lenders,
    near,
    far,
    WIDENED: tl.constexpr,
    FALLBACK: tl.constexpr,
    W: tl.constexpr,
):
    """Which borrowers keep, widen or give up their lender's mask; grid (B*H,)."""
    head_b = tl.program_id(0)
    head = head_b % num_heads
    slot = tl.load(slots_ptr + head)
    gamma = tl.load(gamma_ptr + head)
    branch = tl.load(branch_ptr + head).to(tl.int32)
    onto = tl.full([], -1, tl.int64)
    if tl.load(borrows_ptr + head) != 0:
        lender = (head_b // num_heads) * num_lenders + tl.load(row_ptr + head)
        rows = rows_ptr + head_b.to(tl.int64) * num_cols
        distance = row_distance(rows, lent_ptr + lender * num_cols, num_cols, False, W)
        own = tl.load(own_ptr + head)
        widened = (distance > near) & (distance <= far)
        onto = tl.where(widened, slot, onto)
        slot = tl.where(distance > near, own, slot)
        gamma = tl.where(distance > far, tl.load(fallback_ptr + head), gamma)
        branch = tl.where(distance > far, FALLBACK, tl.where(widened, WIDENED, branch))
    tl.store(slots_out_ptr + head_b, slot)
    tl.store(gamma_out_ptr + head_b, gamma)
    tl.store(branch_out_ptr + head_b, branch.to(tl.uint8))
    tl.store(onto_ptr + head_b, onto)


@triton.jit
def row_distance(rows, others, num_cols, UNIFORM: tl.constexpr, W: tl.constexpr):
    """Square root of the Jensen-Shannon divergence of two rows [C], or of one and uniform."""
    of_p = tl.zeros([W], tl.float32)
    of_q = tl.zeros([W], tl.float32)
    for start in range(0, num_cols, W):
        c = start + tl.arange(0, W)
        inside = c < num_cols
        p = tl.load(rows + c, mask=inside, other=0.0)
        if UNIFORM:
            q = tl.where(inside, 1.0 / num_cols, 0.0)
        else:
            q = tl.load(others + c, mask=inside, other=0.0)
        # Not under the least normal number: half of a denormal p vanishes.
        m = tl.maximum((p + q) * 0.5, 1.1754944e-38)
        of_p += tl.where(p > 0, p * tl.log(tl.where(p > 0, p / m, 1.0)), 0.0)
        of_q += tl.where(q > 0, q * tl.log(tl.where(q > 0, q / m, 1.0)), 0.0)
    divergence = (tl.sum(of_p, 0) + tl.sum(of_q, 0)) * 0.5
    return tl.sqrt(tl.maximum(divergence, 0.0))


@triton.jit(do_not_specialize=["num_heads", "num_clusters", "num_slots"])
def share_roles_kernel(
    eligible_ptr,  # uint8 [B, H]
    alike_ptr,  # uint8 [B, H]
    known_ptr,  # uint8 [B, K]
    cluster_ptr,  # int64 [H]
    slot_ptr,  # int64 [H]
    clustered_ptr,  # uint8 [H]
    branch_ptr,  # uint8 [B, H], read
    cost_ptr,  # float32 [B, H], read
    shared_ptr,  # uint8 [B, H]
    dense_ptr,  # uint8 [B, H]
    heads_ptr,  # int64 [B, S]
    branch_out_ptr,
    cost_out_ptr,
    num_heads,
    num_clusters,
    num_slots,
    pivot_cost,
    PIVOT: tl.constexpr,
    SHARED: tl.constexpr,
    HEADS: tl.constexpr,
):
    """Which heads share, which become pivots; grid (B,). HEADS: a power of two, at least H."""
    batch = tl.program_id(0)
    h = tl.arange(0, HEADS)
    inside = h < num_heads
    at = batch * num_heads + h
    clustered = tl.load(clustered_ptr + h, mask=inside, other=0) != 0
    eligible = (tl.load(eligible_ptr + at, mask=inside, other=0) != 0) & clustered
    cluster = tl.load(cluster_ptr + h, mask=inside, other=0)
    known = tl.load(known_ptr + batch * num_clusters + cluster, mask=inside, other=0) != 0
    alike = tl.load(alike_ptr + at, mask=inside, other=0) != 0
    slot = tl.load(slot_ptr + h, mask=inside, other=0)
    shared = eligible & known & alike
    candidate = eligible & (known == 0)
    dense = h < 0
    for s in range(num_slots):
        first = tl.min(tl.where(candidate & (slot == s), h, HEADS), 0)
        tl.store(heads_ptr + batch * num_slots + s, tl.where(first < HEADS, first, -1))
        dense = dense | (h == first)
    branch = tl.load(branch_ptr + at, mask=inside, other=0).to(tl.int32)
    branch = tl.where(dense, PIVOT, tl.where(shared, SHARED, branch))
    cost = tl.load(cost_ptr + at, mask=inside, other=0.0)
    tl.store(shared_ptr + at, shared.to(tl.uint8), mask=inside)
    tl.store(dense_ptr + at, dense.to(tl.uint8), mask=inside)
    tl.store(branch_out_ptr + at, branch.to(tl.uint8), mask=inside)
    tl.store(cost_out_ptr + at, tl.where(dense, cost + pivot_cost, cost), mask=inside)


@triton.jit(do_not_specialize=["num_rows", "num_cols", "num_heads", "num_clusters"])
def lend_kernel(
    mask_ptr,  # uint8 [B*H, R, C], written where shared
    shared_ptr,  # uint8 [B*H]
    lent_ptr,  # uint8 [B, K, R, C]
    cluster_ptr,  # int64 [H]
    floor_ptr,  # uint8 [B*H, R, C]; unused unless FLOOR
    num_rows,
    num_cols,
    num_heads,
    num_clusters,
    FLOOR: tl.constexpr,
    W: tl.constexpr,
):
    """Give each sharing head its cluster's mask, united with its floor; grid (R, B*H)."""
    row = tl.program_id(0)
    head_b = tl.program_id(1)
    if tl.load(shared_ptr + head_b) == 0:
        return
    cluster = (head_b // num_heads) * num_clusters + tl.load(cluster_ptr + head_b % num_heads)
    source = lent_ptr + (cluster.to(tl.int64) * num_rows + row) * num_cols
    at = (head_b.to(tl.int64) * num_rows + row) * num_cols
    for start in range(0, num_cols, W):
        c = start + tl.arange(0, W)
        on = tl.load(source + c, mask=c < num_cols, other=0)
        if FLOOR:
            on |= tl.load(floor_ptr + at + c, mask=c < num_cols, other=0)
        tl.store(mask_ptr + at + c, on, mask=c < num_cols)


@triton.jit(do_not_specialize=["num_rows", "num_cols", "num_heads", "num_masks"])
def unite_kernel(
    masks_ptr,  # uint8 [B, K, R, C]
    slots_ptr,  # int64 [B*H]
    onto_ptr,  # int64 [B*H], or -1
    num_rows,
    num_cols,
    num_heads,
    num_masks,
    W: tl.constexpr,
):
    """Add one mask to another, where a head asks for it; grid (R, B*H)."""
    row = tl.program_id(0)
    head_b = tl.program_id(1)
    onto = tl.load(onto_ptr + head_b)
    if onto < 0:
        return
    first = (head_b // num_heads).to(tl.int64) * num_masks
    target = masks_ptr + ((first + tl.load(slots_ptr + head_b)) * num_rows + row) * num_cols
    source = masks_ptr + ((first + onto) * num_rows + row) * num_cols
    for start in range(0, num_cols, W):
        c = start + tl.arange(0, W)
        on = tl.load(target + c, mask=c < num_cols, other=0)
        on |= tl.load(source + c, mask=c < num_cols, other=0)
        tl.store(target + c, on, mask=c < num_cols)


@triton.jit(do_not_specialize=["num_rows", "num_cols", "num_heads", "num_clusters", "num_slots"])
def keep_kernel(
    heads_ptr,  # int64 [B, S], -1 for none
    cluster_ptr,  # int64 [S]
    pattern_ptr,  # uint8 [B*S, R, C]
    sums_ptr,  # float32 [2, B, H, C], of columns and of diagonals
    covered_ptr,  # float32 [B, S]
    known_out_ptr,  # uint8 [B, K]
    mask_out_ptr,  # uint8 [B, K, R, C]
    vertical_out_ptr,  # float32 [B, K, C]
    slash_out_ptr,  # float32 [B, K, C]
    covered_out_ptr,  # float32 [B, K]
    num_rows,
    num_cols,
    num_heads,
    num_clusters,
    num_slots,
    W: tl.constexpr,
):
    """Keep what new pivots lend, the forced blocks on; grid (R, B*S)."""
    row = tl.program_id(0)
    slot_b = tl.program_id(1)
    head = tl.load(heads_ptr + slot_b)
    if head < 0:
        return
    batch = slot_b // num_slots
    cluster = batch * num_clusters + tl.load(cluster_ptr + slot_b % num_slots)
    cluster = cluster.to(tl.int64)
    source = pattern_ptr + (slot_b.to(tl.int64) * num_rows + row) * num_cols
    target = mask_out_ptr + (cluster * num_rows + row) * num_cols
    diagonal = num_cols - num_rows + row
    for start in range(0, num_cols, W):
        c = start + tl.arange(0, W)
        on = tl.load(source + c, mask=c < num_cols, other=0)
        on = tl.where((c == 0) | (c == diagonal), 1, on)
        tl.store(target + c, on.to(tl.uint8), mask=c < num_cols)
    if row == 0:
        at = sums_ptr + (batch * num_heads + head) * num_cols
        diagonals = (tl.num_programs(1) // num_slots).to(tl.int64) * num_heads * num_cols
        for start in range(0, num_cols, W):
            c = start + tl.arange(0, W)
            inside = c < num_cols
            vertical = tl.load(at + c, mask=inside, other=0.0)
            slash = tl.load(at + diagonals + c, mask=inside, other=0.0)
            tl.store(vertical_out_ptr + cluster * num_cols + c, vertical, mask=inside)
            tl.store(slash_out_ptr + cluster * num_cols + c, slash, mask=inside)
        tl.store(known_out_ptr + cluster, 1)
        tl.store(covered_out_ptr + cluster, tl.load(covered_ptr + slot_b))
