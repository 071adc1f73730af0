"""Triton kernels that find where the largest blocks of a whole map reach a share of it.

Many programs add a map up over thresholds four octaves apart, then over eight between the two that
matter, half an octave apart; as many take the entries between the two of those that matter, a few
per cent of the map, into a scratch row; then one program a map halves the interval of bits there,
as `select_blocks` does. Every sum has a fixed order. Legend: P parts that a map is taken in, L
thresholds.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from sp_runtime.kernels.select_blocks import (
    floor_bits,
    largest_in,
    load_bits,
    load_gamma,
    quarter,
    quarters,
    sum_from_three,
    ties_to_reach,
)


@triton.jit
def _coarse(LEVELS: tl.constexpr):
    """int32 [L], bits: 0, and then powers of 16 up to 1."""
    i = tl.arange(0, LEVELS)
    return tl.where(i == 0, 0, 0x3F800000 - (LEVELS - 1 - i) * 0x2000000)


@triton.jit
def _fine(lo, hi, LEVELS: tl.constexpr):
    """int32 [L], bits: equal steps from lo to under hi."""
    return lo + tl.arange(0, LEVELS) * ((hi - lo) // LEVELS)


@triton.jit
def _added(ptr, head_b, parts, stop, LEVELS: tl.constexpr, TILE: tl.constexpr):
    """[L]: the sums or counts [P, L] of the first `stop` of the parts of a map, added up."""
    levels = tl.arange(0, LEVELS)
    base = ptr + head_b.to(tl.int64) * parts * LEVELS
    total = tl.zeros([LEVELS], ptr.dtype.element_ty)
    for start in range(0, stop, TILE):
        n = start + tl.arange(0, TILE)
        at = base + n[:, None] * LEVELS + levels[None, :]
        total += tl.sum(tl.load(at, mask=(n < stop)[:, None], other=0), 0)
    return total


@triton.jit
def _narrowed(thresholds, past, sums, hi, above):
    """(lo, hi, above): the neighbouring thresholds, the lower one the last in `past`, and the sum
    of the entries from hi on; hi and above as given if all are in it."""
    lo = tl.max(tl.where(past, thresholds, 0), 0)
    above = tl.max(tl.where(past, above, sums), 0)
    hi = tl.min(tl.where(past, hi, thresholds), 0)
    return lo, hi, above


@triton.jit
def _coarse_bracket(sums_ptr, head_b, parts, share, LEVELS: tl.constexpr, TILE: tl.constexpr):
    """(total, wanted, lo, hi, above) by the coarse thresholds."""
    sums = _added(sums_ptr, head_b, parts, parts, LEVELS, TILE)
    total = tl.max(sums, 0)  # that from 0 on
    wanted = share * total
    past = sums >= wanted  # sums do not grow with the threshold
    lo, hi, above = _narrowed(_coarse(LEVELS), past, sums, 0x7F800000, 0.0)
    return total, wanted, lo, hi, above


@triton.jit
def _fine_bracket(
    fine_ptr, found_ptr, head_b, parts, stop, wanted, lo, hi, above,
    LEVELS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """(lo, hi, above) of a coarse bracket by the fine thresholds, and how many entries the first
    `stop` of the parts have in it."""
    sums = _added(fine_ptr, head_b, parts, parts, LEVELS, TILE)
    found = _added(found_ptr, head_b, parts, stop, LEVELS, TILE)
    # The lowest threshold is in it whatever rounding does to its sum.
    past = (sums >= wanted) | (tl.arange(0, LEVELS) == 0)
    inside = tl.min(tl.where(past, found, 0x7FFFFFFF), 0) - tl.max(tl.where(past, 0, found), 0)
    lo, hi, above = _narrowed(_fine(lo, hi, LEVELS), past, sums, hi, above)
    return lo, hi, above, inside


@triton.jit(do_not_specialize=["gamma_b", "gamma_h", "count", "num_heads", "part"])
def map_sums_kernel(
    mass_ptr,  # float32 [B*S, count]
    coarse_ptr,  # float32 [B*S, P, L]
    fine_ptr,  # float32 [B*S, P, L], unused unless FINE
    found_ptr,  # int32 [B*S, P, L], unused unless FINE
    gamma_ptr,
    gamma,
    gamma_b,
    gamma_h,
    count,
    num_heads,
    part,
    TENSOR: tl.constexpr,
    FINE: tl.constexpr,
    LEVELS: tl.constexpr,
    TILE: tl.constexpr,
    W: tl.constexpr,
):
    """Sums of `part` entries from each coarse threshold on; grid (P, B*S).

    FINE: from each threshold in the coarse bracket on, and the numbers of those in the bracket.
    """
    head_b = tl.program_id(1)
    parts = tl.num_programs(0)
    share = load_gamma(gamma_ptr, gamma, head_b, num_heads, gamma_b, gamma_h, TENSOR)
    if share <= 0:
        return
    thresholds = _coarse(LEVELS)
    hi = 0
    if FINE:
        _total, _wanted, lo, hi, _above = _coarse_bracket(
            coarse_ptr, head_b, parts, share, LEVELS, TILE
        )
        if (lo == 0) | (share >= 1):  # not needed: see `map_crossing_kernel`
            return
        thresholds = _fine(lo, hi, LEVELS)
    source = mass_ptr + head_b.to(tl.int64) * count
    first = tl.program_id(0) * part
    stop = tl.minimum(first + part, count)
    sums = tl.zeros([LEVELS, W], tl.float32)
    found = tl.zeros([LEVELS, W], tl.int32)
    for start in range(first, stop, W):
        x, bits = load_bits(source, start, stop, W)
        over = bits[None, :] >= thresholds[:, None]
        sums += tl.where(over, x[None, :], 0.0)
        if FINE:
            found += (over & (bits < hi)[None, :]).to(tl.int32)
    at = (head_b * parts + tl.program_id(0)).to(tl.int64) * LEVELS + tl.arange(0, LEVELS)
    if FINE:
        tl.store(fine_ptr + at, tl.sum(sums, 1))
        tl.store(found_ptr + at, tl.sum(found, 1))
    else:
        tl.store(coarse_ptr + at, tl.sum(sums, 1))


@triton.jit(do_not_specialize=["gamma_b", "gamma_h", "count", "room", "num_heads", "part"])
def map_gather_kernel(
    mass_ptr,  # float32 [B*S, count]
    coarse_ptr,  # float32 [B*S, P, L]
    fine_ptr,  # float32 [B*S, P, L]
    found_ptr,  # int32 [B*S, P, L]
    scratch_ptr,  # float32 [B*S, room]
    gamma_ptr,
    gamma,
    gamma_b,
    gamma_h,
    count,
    room,
    num_heads,
    part,
    TENSOR: tl.constexpr,
    LEVELS: tl.constexpr,
    TILE: tl.constexpr,
    W: tl.constexpr,
):
    """The entries of the fine bracket, in order, at the scratch row; grid (P, B*S).

    room: at least as many as the entries that are not 0.
    """
    head_b = tl.program_id(1)
    parts = tl.num_programs(0)
    share = load_gamma(gamma_ptr, gamma, head_b, num_heads, gamma_b, gamma_h, TENSOR)
    if (share <= 0) | (share >= 1):
        return
    _total, wanted, lo, hi, above = _coarse_bracket(coarse_ptr, head_b, parts, share, LEVELS, TILE)
    if lo == 0:  # the smallest ones matter: see `map_crossing_kernel`
        return
    lo, hi, _above, place = _fine_bracket(
        fine_ptr, found_ptr, head_b, parts, tl.program_id(0), wanted, lo, hi, above, LEVELS, TILE
    )
    source = mass_ptr + head_b.to(tl.int64) * count
    scratch = scratch_ptr + head_b.to(tl.int64) * room
    first = tl.program_id(0) * part
    stop = tl.minimum(first + part, count)
    for start in range(first, stop, W):
        x, bits = load_bits(source, start, stop, W)
        inside = (bits >= lo) & (bits < hi)
        number = tl.cumsum(inside.to(tl.int32), 0)
        to = place + number - 1
        tl.store(scratch + to, x, mask=inside & (to < room))
        place += tl.max(number, 0)


@triton.jit(do_not_specialize=["gamma_b", "gamma_h", "count", "room", "num_heads", "parts"])
def map_crossing_kernel(
    mass_ptr,  # float32 [B*S, count]
    coarse_ptr,  # float32 [B*S, P, L]
    fine_ptr,  # float32 [B*S, P, L]
    found_ptr,  # int32 [B*S, P, L]
    scratch_ptr,  # float32 [B*S, room]
    value_ptr,  # int32 [B*S, 2]: bits of the last kept value, and the position of its last tie
    gamma_ptr,
    gamma,
    gamma_b,
    gamma_h,
    count,
    room,
    num_heads,
    parts,
    TENSOR: tl.constexpr,
    LEVELS: tl.constexpr,
    TILE: tl.constexpr,
    W: tl.constexpr,
):
    """Where the largest blocks of a whole map reach a share gamma of it; grid (B*S,)."""
    head_b = tl.program_id(0)
    share = load_gamma(gamma_ptr, gamma, head_b, num_heads, gamma_b, gamma_h, TENSOR)
    if share <= 0:  # nothing is wanted, and nothing stored
        return
    source = mass_ptr + head_b.to(tl.int64) * count
    total, wanted, lo, hi, base = _coarse_bracket(coarse_ptr, head_b, parts, share, LEVELS, TILE)
    bits_kept = 0
    last = count
    if (share < 1) & (total > 0):
        # Where only the smallest are left out, all entries are looked at where they are.
        entries = source
        found = count
        rest = 0.0  # of the entries from hi on, where they are not among these
        if lo == 0:
            lo = tl.maximum(floor_bits(total, wanted, count), 1)
        else:
            lo, hi, base, found = _fine_bracket(
                fine_ptr, found_ptr, head_b, parts, parts, wanted, lo, hi, base, LEVELS, TILE
            )
            entries = scratch_ptr + head_b.to(tl.int64) * room
            rest = base
        bits_kept = lo
        n_lo = found
        n_hi = 0
        above = base
        while (hi - lo > 1) & (n_lo - n_hi > 1):
            t1, t2, t3 = quarters(lo, hi)
            s1, s2, s3, n1, n2, n3 = sum_from_three(entries, found, t1, t2, t3, W, 1)
            s1, s2, s3 = rest + s1, rest + s2, rest + s3
            past1 = s1 >= wanted
            past2 = s2 >= wanted
            past3 = s3 >= wanted
            n_lo, n_hi = quarter(past1, past2, past3, n_lo, n1, n2, n3, n_hi)
            _sum_lo, above = quarter(past1, past2, past3, total, s1, s2, s3, above)
            lo, hi = quarter(past1, past2, past3, lo, t1, t2, t3, hi)
        value = largest_in(entries, found, lo, hi, W)
        # Without one the sums of these entries fell short of what those of the map reached, by a
        # rounding: all of them are kept.
        if value > 0:
            bits_kept = value.to(tl.int32, bitcast=True)
            ties = ties_to_reach(above, value, wanted).to(tl.int32)
            if n_lo - n_hi > ties:
                last = 0
                for start in range(0, count, W):
                    i = start + tl.arange(0, W)
                    _x, bits = load_bits(source, start, count, W)
                    tie = (bits == bits_kept).to(tl.int32)
                    kept = (tie != 0) & (tl.cumsum(tie, 0) <= ties)
                    last = tl.maximum(last, tl.max(tl.where(kept, i, 0), 0))
                    ties -= tl.sum(tie, 0)
    tl.store(value_ptr + head_b * 2, bits_kept)
    tl.store(value_ptr + head_b * 2 + 1, last)
