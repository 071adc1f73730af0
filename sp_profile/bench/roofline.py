"""Operations, bytes and the ceilings they run into, measured in the same process.

Operations count whole blocks: 4 T^2 D each (Q K^T and P V), the diagonal included. Two byte counts
bound a kernel from both sides: `compulsory` reads q, k, v once and writes the output and the
log-sum-exp once; `tiles` reads the K and V tile of every listed block, as it is without any reuse
between block rows (L2 serves part of it).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sp_profile.bench.clock import Clock
from sp_profile.bench.inputs import LayerShape
from sp_profile.bench.stats import tflops

_MATRIX = 8192
_COPY_BYTES = 1 << 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """What this device reaches: a large matrix product, and a large copy (read plus written)."""

    matmul_tflops: float
    copy_bytes_per_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Roofline:
    """Where one measured call stands.

    floor_ms: the larger of operations over the matrix ceiling and compulsory bytes over the copy
    ceiling. bound: which of the two that is. of_matmul: reached share of the matrix ceiling.
    tile_bytes_per_s: rate at which K and V tiles must have come, from L2 or memory.
    """

    operations: int
    compulsory_bytes: int
    tile_bytes: int
    floor_ms: float
    bound: str
    of_matmul: float
    tile_bytes_per_s: float


def measure_ceilings(device: torch.device, dtype: str, clock: Clock) -> Ceilings:
    """Random operands, as zeros run faster. On CPU small sizes, of no more than a rough worth."""
    on_gpu = device.type == "cuda"
    side = _MATRIX if on_gpu else 256
    kind = getattr(torch, dtype)
    a, b = (torch.randn(side, side, device=device).to(kind) for _ in range(2))
    product = _median(clock, lambda: a @ b)
    count = (_COPY_BYTES if on_gpu else 1 << 22) // 4
    source = torch.randint(0, 100, (count,), dtype=torch.int32, device=device)
    target = torch.empty_like(source)
    copy = _median(clock, lambda: target.copy_(source))
    return Ceilings(
        matmul_tflops=tflops(2 * side**3, product),
        copy_bytes_per_s=2 * 4 * count / copy * 1e3,
    )


def roofline(shape: LayerShape, blocks: int, milliseconds: float, ceilings: Ceilings) -> Roofline:
    """Of a call that computes `blocks` blocks over all heads in `milliseconds`."""
    size = torch.empty((), dtype=getattr(torch, shape.dtype)).element_size()
    token = shape.head_dim * size
    operations = blocks * shape.operations_per_block
    compulsory = shape.length * (2 * shape.heads * token + 2 * shape.kv_heads * token)
    compulsory += 4 * shape.length * shape.heads
    tiles = blocks * 2 * shape.block_size * token
    by_matmul = operations / ceilings.matmul_tflops / 1e9
    by_copy = compulsory / ceilings.copy_bytes_per_s * 1e3
    return Roofline(
        operations=operations,
        compulsory_bytes=compulsory,
        tile_bytes=tiles,
        floor_ms=max(by_matmul, by_copy),
        bound="arithmetic" if by_matmul >= by_copy else "memory",
        of_matmul=by_matmul / milliseconds,
        tile_bytes_per_s=tiles / milliseconds * 1e3,
    )


def _median(clock: Clock, call: Callable[[], object]) -> float:
    return clock.measure(call).times.median_ms
