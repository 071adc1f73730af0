"""Triton kernels of the last-block estimate: attention of the last queries on keys and distances.

The row log-sum-exp comes from `block_mass.row_lse_kernel`. Scores are computed transposed, keys by
queries, so that both sums run over queries, along a row of the tile. With P the position of the
first query and t the first key of a tile, the diagonals of a tile [BN keys, BM queries] are the
distances P - t - BN < o < P - t + BM. Rotating every query column by its number brings the distance
P - t + d and the distance P - t + d - BN into row d; they are summed apart as `lower` and `upper`.
A distance is then the sum of one lower and one upper entry of each query tile, in a fixed order.
"""

# mypy: disable-error-code="no-untyped-def"

from __future__ import annotations

import triton
import triton.language as tl

from sp_runtime.kernels.block_mass import slot_positions
from sp_runtime.kernels.block_sparse import load_keys, load_queries


@triton.jit(do_not_specialize=["n_q", "n_kv", "num_heads", "group"])
def estimate_kernel(
    q_ptr,
    k_src,
    lse_ptr,  # float32 [B*Hq, BLOCK], base 2, +inf where there is no query
    vertical_ptr,  # float32 [B*Hq, N]
    part_ptr,  # float32 [B*Hq, BLOCK / BM, 2 (lower, upper), tiles, BN]
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
    DESC: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Vertical sums and diagonal partials of one key tile; grid (B*Hq, tiles)."""
    SUB_M: tl.constexpr = BLOCK // BM
    slot = tl.program_id(0)
    tile = tl.program_id(1)
    tiles = tl.num_programs(1)
    batch = slot // num_heads
    head = slot % num_heads
    q_offset = n_kv - n_q
    keys = tile * BN + tl.arange(0, BN)
    k = load_keys(
        k_src, batch, head // group, tile * BN, stride_kb, stride_kh, stride_kn, n_kv,
        HEAD_DIM, DIM, BN, DESC, True,
    )  # fmt: skip
    d = tl.arange(0, BN)[:, None]
    i = tl.arange(0, BM)[None, :]
    vertical = tl.zeros([BN], tl.float32)
    for sub in tl.range(0, SUB_M, num_stages=1):
        slots = sub * BM + tl.arange(0, BM)
        pos, valid = slot_positions(slots, 0, 1, q_offset, n_kv, 1, BLOCK, BLOCK, True)
        q = load_queries(
            q_ptr, batch, head, pos - q_offset, stride_qb, stride_qh, stride_qn, valid,
            HEAD_DIM, DIM,
        )  # fmt: skip
        lse = tl.load(lse_ptr + slot.to(tl.int64) * BLOCK + slots)
        s = tl.dot(k, q.T, input_precision=PRECISION)
        p = tl.exp2(s * scale_log2 - lse[None, :])
        # There is no main loop here: one comparison an element is cheaper than a second body.
        p = tl.where(keys[:, None] <= pos[None, :], p, 0.0)
        vertical += tl.sum(p, 1)
        # BN is a power of two: the mask is the remainder, of negative numbers as well.
        turned = tl.gather(p, (i - d) & (BN - 1), 0)
        at = ((slot.to(tl.int64) * SUB_M + sub) * 2 * tiles + tile) * BN + tl.arange(0, BN)
        tl.store(part_ptr + at, tl.sum(tl.where(i >= d, turned, 0.0), 1))
        tl.store(part_ptr + at + tiles * BN, tl.sum(tl.where(i < d, turned, 0.0), 1))
    count = tl.minimum(n_q, BLOCK).to(tl.float32)
    tl.store(vertical_ptr + slot.to(tl.int64) * n_kv + keys, vertical / count, mask=keys < n_kv)


@triton.jit(do_not_specialize=["n_q", "n_kv", "tiles"])
def slash_kernel(
    part_ptr,  # float32 [B*Hq, BLOCK / BM, 2, tiles, BN]
    slash_ptr,  # float32 [B*Hq, N]
    n_q,
    n_kv,
    tiles,
    BLOCK: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    W: tl.constexpr,
):
    """Add up the partials of W distances; grid (B*Hq, N / W)."""
    SUB_M: tl.constexpr = BLOCK // BM
    slot = tl.program_id(0)
    o = tl.program_id(1) * W + tl.arange(0, W)
    total = tl.zeros([W], tl.float32)
    for sub in tl.static_range(0, SUB_M):
        first = n_kv - BLOCK + sub * BM  # position of this tile's first query
        # The tile with 0 <= d < BN; beyond the first key tile only d >= BN is left, and is empty.
        tile = (tl.maximum(first - o, 0) + BN - 1) // BN
        d = o - first + tile * BN
        on = (o < n_kv) & (d < BN)
        at = part_ptr + (slot.to(tl.int64) * SUB_M + sub) * 2 * tiles * BN
        total += tl.load(at + tile * BN + d, mask=on & (tile < tiles), other=0.0)
        upper = at + tiles * BN + (tile - 1) * BN + d
        total += tl.load(upper, mask=on & (tile >= 1) & (tile <= tiles), other=0.0)
    count = tl.minimum(n_q, BLOCK).to(tl.float32)
    tl.store(slash_ptr + slot.to(tl.int64) * n_kv + o, total / count, mask=o < n_kv)
