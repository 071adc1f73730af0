"""Triton kernels that choose blocks: vertical-slash, gamma-masks, and the shared-pattern decision.

No kernel sorts. The bits of floats that are not negative are ordered as the floats are, so the
value at which a sum of the largest entries crosses a threshold is found by halving an interval of
bits, with one pass over the entries a step; ties at that value go to the lower index. Every sum has
a fixed order: results are bitwise repeatable. Lengths are loop bounds, never tile shapes.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_bits(ptr, start, stop, W: tl.constexpr):
    """W floats from `start` and their bits; beyond `stop` 0 and -1, which no threshold reaches."""
    i = start + tl.arange(0, W)
    x = tl.load(ptr + i, mask=i < stop, other=0.0)
    return x, tl.where(i < stop, x.to(tl.int32, bitcast=True), -1)


@triton.jit
def total_and_top(ptr, count, W: tl.constexpr, STAGES: tl.constexpr):
    """The sum of `count` floats, and the bits just above the largest one."""
    total = tl.zeros([W], tl.float32)
    top = tl.full([W], -1, tl.int32)
    for start in tl.range(0, count, W, num_stages=STAGES):
        x, bits = load_bits(ptr, start, count, W)
        total += x
        top = tl.maximum(top, bits)
    return tl.sum(total, 0), tl.max(top, 0) + 1


@triton.jit
def sum_from(ptr, count, threshold, W: tl.constexpr):
    """Sum and number of the entries whose bits are `threshold` or more."""
    total = tl.zeros([W], tl.float32)
    found = tl.zeros([W], tl.int32)
    for start in range(0, count, W):
        x, bits = load_bits(ptr, start, count, W)
        total += tl.where(bits >= threshold, x, 0.0)
        found += (bits >= threshold).to(tl.int32)
    return tl.sum(total, 0), tl.sum(found, 0)


@triton.jit
def sum_from_three(ptr, count, t1, t2, t3, W: tl.constexpr, STAGES: tl.constexpr):
    """`sum_from` at three thresholds in one pass: three sums, then three numbers.

    STAGES: loads in flight; a long row is bound by their latency.
    """
    s1 = tl.zeros([W], tl.float32)
    s2 = tl.zeros([W], tl.float32)
    s3 = tl.zeros([W], tl.float32)
    n1 = tl.zeros([W], tl.int32)
    n2 = tl.zeros([W], tl.int32)
    n3 = tl.zeros([W], tl.int32)
    for start in tl.range(0, count, W, num_stages=STAGES):
        x, bits = load_bits(ptr, start, count, W)
        s1 += tl.where(bits >= t1, x, 0.0)
        s2 += tl.where(bits >= t2, x, 0.0)
        s3 += tl.where(bits >= t3, x, 0.0)
        n1 += (bits >= t1).to(tl.int32)
        n2 += (bits >= t2).to(tl.int32)
        n3 += (bits >= t3).to(tl.int32)
    return tl.sum(s1, 0), tl.sum(s2, 0), tl.sum(s3, 0), tl.sum(n1, 0), tl.sum(n2, 0), tl.sum(n3, 0)


@triton.jit
def floor_bits(total, gamma, count):
    """Bits of a value so small that all entries under it together leave the sum above gamma."""
    return ((total - gamma) / count * 0.5).to(tl.int32, bitcast=True)


@triton.jit
def largest_in(ptr, count, lo, hi, W: tl.constexpr):
    """The largest entry whose bits lie in [lo, hi), or 0."""
    best = tl.zeros([W], tl.float32)
    for start in range(0, count, W):
        x, bits = load_bits(ptr, start, count, W)
        best = tl.maximum(best, tl.where((bits >= lo) & (bits < hi), x, 0.0))
    return tl.max(best, 0)


@triton.jit
def quarters(lo, hi):
    """Three thresholds between two."""
    width = hi - lo
    half = lo + (width >> 1)
    return lo + (width >> 2), half, half + (width >> 2)


@triton.jit
def quarter(past1, past2, past3, x_lo, x1, x2, x3, x_hi):
    """Of what belongs to lo, to three thresholds and to hi, the two between which `past` ends."""
    last = tl.where(past3, x3, tl.where(past2, x2, tl.where(past1, x1, x_lo)))
    first = tl.where(past3, x_hi, tl.where(past2, x3, tl.where(past1, x2, x1)))
    return last, first


@triton.jit
def crossing(ptr, count, total, top, gamma, W: tl.constexpr, STAGES: tl.constexpr):
    """Where the sum of the largest entries crosses gamma, for 0 < gamma <= total.

    Returns (value, above, sum_above): the entry with which the sum passes gamma, how many entries
    are larger, and their sum.
    """
    lo = floor_bits(total, gamma, count)
    hi = top
    sum_hi = 0.0
    n_lo = count
    n_hi = 0
    # The sum from lo on is past gamma, that from hi on is not; one entry between them is the one.
    while (hi - lo > 1) & (n_lo - n_hi > 1):
        t1, t2, t3 = quarters(lo, hi)
        s1, s2, s3, n1, n2, n3 = sum_from_three(ptr, count, t1, t2, t3, W, STAGES)
        past1 = s1 > gamma
        past2 = s2 > gamma
        past3 = s3 > gamma
        n_lo, n_hi = quarter(past1, past2, past3, n_lo, n1, n2, n3, n_hi)
        _sum_lo, sum_hi = quarter(past1, past2, past3, total, s1, s2, s3, sum_hi)
        lo, hi = quarter(past1, past2, past3, lo, t1, t2, t3, hi)
    return largest_in(ptr, count, lo, hi, W), n_hi, sum_hi


@triton.jit
def ties_within(base, value, gamma):
    """How many times `value` can be added to `base` at or under gamma."""
    fit = tl.floor((gamma - base) / tl.maximum(value, 1e-37))
    fit = tl.where(base + fit * value > gamma, fit - 1, fit)
    fit = tl.where(base + (fit + 1) * value <= gamma, fit + 1, fit)
    return tl.maximum(fit, 0.0)


@triton.jit
def ties_to_reach(base, value, gamma):
    """How many times `value` must be added to `base` to reach gamma, at least once."""
    need = tl.ceil((gamma - base) / tl.maximum(value, 1e-37))
    need = tl.where(base + (need - 1) * value >= gamma, need - 1, need)
    need = tl.where(base + need * value < gamma, need + 1, need)
    return tl.maximum(need, 1.0)


@triton.jit
def load_gamma(gamma_ptr, gamma, head_b, heads, stride_b, stride_h, TENSOR: tl.constexpr):
    """Of one flat (batch, head): an entry of a float32 tensor [B, H] of any strides, or the number
    for all."""
    if TENSOR:
        return tl.load(gamma_ptr + (head_b // heads) * stride_b + (head_b % heads) * stride_h)
    else:
        return tl.cast(gamma, tl.float32)


@triton.jit(
    do_not_specialize=[
        "gamma_b", "gamma_h", "n_kv", "num_cols", "num_heads", "low", "high",
    ]
)  # fmt: skip
def cross_select_kernel(
    vertical_ptr,  # float32 [B*H, N]
    slash_ptr,  # float32 [B*H, N]
    blocks_ptr,  # float32 [2, B*H, C], their block sums
    flags_ptr,  # uint8 [2, B*H, C]
    gamma_ptr,
    gamma,
    gamma_b,
    gamma_h,
    n_kv,
    num_cols,
    num_heads,
    low,
    high,
    BLOCK: tl.constexpr,
    TENSOR: tl.constexpr,
    W: tl.constexpr,
    BINS: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The largest columns (program_id(1) 0) or diagonals (1) of one head; grid (B*H, 2).

    As many as the largest entries whose sum stays at or under gamma fill, plus one, within
    [low, high]; bin 0 is the first of them. Gamma 0 is `low` of them.
    """
    head_b = tl.program_id(0)
    which = tl.program_id(1)
    source = vertical_ptr if which == 0 else slash_ptr
    source += head_b.to(tl.int64) * n_kv
    share = load_gamma(gamma_ptr, gamma, head_b, num_heads, gamma_b, gamma_h, TENSOR)
    count = tl.where(share > 0, n_kv, 0)
    if (low < high) & (share < 1) & (share > 0):
        total, top = total_and_top(source, n_kv, W, STAGES)
        if total > share:
            value, above, base = crossing(source, n_kv, total, top, share, W, STAGES)
            count = above + ties_within(base, value, share).to(tl.int32)
    wanted = tl.minimum(tl.maximum((count + 1) // BLOCK + 1, low), high)

    at = (which * tl.num_programs(0) + head_b).to(tl.int64) * num_cols
    bins = blocks_ptr + at + 1  # bin 0 is on anyway
    flags = flags_ptr + at + 1
    others = num_cols - 1
    keep = tl.minimum(wanted - 1, others)
    tl.store(flags - 1, 1)
    lo = 0
    hi = 0x7F800000  # infinity
    n_lo = others
    n_hi = 0
    # `keep` or more bins lie at or above lo, fewer at or above hi.
    while (hi - lo > 1) & (n_lo > keep):
        t1, t2, t3 = quarters(lo, hi)
        _s1, _s2, _s3, n1, n2, n3 = sum_from_three(bins, others, t1, t2, t3, BINS, 1)
        past1 = n1 >= keep
        past2 = n2 >= keep
        past3 = n3 >= keep
        n_lo, n_hi = quarter(past1, past2, past3, n_lo, n1, n2, n3, n_hi)
        lo, hi = quarter(past1, past2, past3, lo, t1, t2, t3, hi)
    ties = keep - n_hi
    for start in range(0, others, BINS):
        i = start + tl.arange(0, BINS)
        _x, bits = load_bits(bins, start, others, BINS)
        tie = ((bits >= lo) & (bits < hi)).to(tl.int32)
        on = (bits >= hi) | ((tie != 0) & (tl.cumsum(tie, 0) <= ties))
        tl.store(flags + i, on.to(tl.uint8), mask=i < others)
        ties -= tl.sum(tie, 0)


@triton.jit(
    do_not_specialize=["stride_b", "num_heads", "num_rows", "num_cols"],
    do_not_specialize_on_alignment=["mask_ptr"],  # a part of a larger tensor
)
def cross_mask_kernel(
    flags_ptr,  # uint8 [2, B*H, C], columns and diagonals
    mask_ptr,  # uint8 [B, H, R, C], contiguous but for the batch
    stride_b,
    num_heads,
    num_rows,
    num_cols,
    BOTH: tl.constexpr,
    ROWS: tl.constexpr,
    W: tl.constexpr,
):
    """Columns united with block diagonals on ROWS block rows; grid (R / ROWS, B*H).

    BOTH: a diagonal o switches on the block diagonals o and o + 1.
    """
    head_b = tl.program_id(1)
    columns = flags_ptr + head_b.to(tl.int64) * num_cols
    diagonals = flags_ptr + (tl.num_programs(1) + head_b).to(tl.int64) * num_cols
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    diagonal = (num_cols - num_rows + r)[:, None]
    out = mask_ptr + (head_b // num_heads).to(tl.int64) * stride_b
    out += ((head_b % num_heads).to(tl.int64) * num_rows + r)[:, None] * num_cols
    for start in range(0, num_cols, W):
        c = start + tl.arange(0, W)
        inside = (c < num_cols)[None, :] & (r < num_rows)[:, None]
        distance = diagonal - c[None, :]
        past = inside & (distance >= 0)
        on = tl.load(diagonals + distance, mask=past, other=0)
        if BOTH:
            on |= tl.load(diagonals + distance - 1, mask=past & (distance >= 1), other=0)
        on |= tl.where(past, tl.load(columns + c, mask=c < num_cols, other=0)[None, :], 0)
        tl.store(out + c[None, :], on, mask=inside)


@triton.jit(
    do_not_specialize=[
        "gamma_b", "gamma_h", "num_rows", "num_cols", "num_heads", "num_masks", "local_blocks",
    ]
)  # fmt: skip
def gamma_rows_kernel(
    mass_ptr,  # float32 [B*S, R, C]
    mask_ptr,  # uint8 [B, K, R, C]
    slot_ptr,  # int64 [S], the mask of each; unused unless SLOTS, where S is K
    value_ptr,  # int32 [B*S, 2], of `map_crossing_kernel`; unused unless SPREAD
    gamma_ptr,
    gamma,
    row_slack,
    least_share,
    gamma_b,
    gamma_h,
    num_rows,
    num_cols,
    num_heads,
    num_masks,
    local_blocks,
    TENSOR: tl.constexpr,
    FORCED: tl.constexpr,
    SLOTS: tl.constexpr,
    SPREAD: tl.constexpr,
    W: tl.constexpr,
):
    """The largest blocks of one row, up to the one with which they reach gamma; grid (B*S*R,).

    SPREAD: up to the one with which they miss row_slack * (1 - gamma), at least least_share, and
    with them what the whole map keeps. FORCED: block 0, the diagonal and local_blocks before it are
    on as well.
    """
    flat = tl.program_id(0)
    head_b = flat // num_rows
    share = load_gamma(gamma_ptr, gamma, head_b, num_heads, gamma_b, gamma_h, TENSOR)
    kept = 0x7F800000  # infinity: the whole map keeps nothing
    last = 0
    if SPREAD:
        kept = tl.load(value_ptr + head_b * 2)
        last = tl.load(value_ptr + head_b * 2 + 1) - flat % num_rows * num_cols
        share = tl.maximum(1 - row_slack * (1 - share), least_share)
    causal = num_cols - num_rows + flat % num_rows + 1
    source = mass_ptr + flat.to(tl.int64) * num_cols
    mask = head_b.to(tl.int64)
    if SLOTS:
        mask = (head_b // num_heads) * num_masks + tl.load(slot_ptr + head_b % num_heads)
    target = mask_ptr + (mask * num_rows + flat % num_rows) * num_cols
    total, top = total_and_top(source, causal, W, 1)
    lo = 0
    hi = 0
    ties = 0
    if (share < 1) & (total >= share) & (total > 0):
        lo = floor_bits(total, share, causal)
        hi = top
        n_lo = causal
        n_hi = 0
        base = 0.0
        while (hi - lo > 1) & (n_lo - n_hi > 1):
            middle = lo + ((hi - lo) >> 1)
            s, n = sum_from(source, causal, middle, W)
            past = s >= share
            lo = tl.where(past, middle, lo)
            n_lo = tl.where(past, n, n_lo)
            hi = tl.where(past, hi, middle)
            n_hi = tl.where(past, n_hi, n)
            base = tl.where(past, base, s)
        value = largest_in(source, causal, lo, hi, W)
        ties = ties_to_reach(base, value, share).to(tl.int32)
    for start in range(0, num_cols, W):
        c = start + tl.arange(0, W)
        _x, bits = load_bits(source, start, causal, W)
        tie = ((bits >= lo) & (bits < hi)).to(tl.int32)
        on = (bits >= hi) | ((tie != 0) & (tl.cumsum(tie, 0) <= ties))
        if SPREAD:
            on = on | (bits > kept) | ((bits == kept) & (c <= last))
        if FORCED:
            on = on | (c == 0) | ((c < causal) & (c + local_blocks >= causal - 1))
        tl.store(target + c, on.to(tl.uint8), mask=c < num_cols)
        ties -= tl.sum(tie, 0)
