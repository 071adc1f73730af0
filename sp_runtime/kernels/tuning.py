"""Pinned kernel configurations by architecture: a frozen table, no autotuning.

The run time of sparse attention depends on the data, which an autotuner's key does not hold, and a
benchmark inside a prefill synchronises. Every entry compiles without register spills and within the
shared memory of its architecture: 163 KiB on sm_80, 99 KiB on sm_86 and sm_89, 227 KiB on sm_90.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sp_runtime.errors import UnsupportedError

Operation = Literal["attention", "row_lse", "mass", "estimate"]
ElementClass = Literal["half", "float"]

HEAD_DIMS = (64, 80, 96, 128, 256)


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelConfig:
    """One compiled shape of a kernel.

    block_m, block_n: query and key rows of a tile; both divide the attention block size.
    descriptors: K and V come through host tensor descriptors (TMA, sm_90 on) instead of pointers.
    rotated: the attention loop overlaps PV with the next softmax (asynchronous MMA, sm_90 on).
    chunk: key blocks a program of `row_lse` and `mass` takes.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    descriptors: bool = False
    rotated: bool = False
    chunk: int = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class HopperConfig:
    """How the warp-specialised kernel of `hopper.py` runs.

    stages: slots of the K ring and of the V ring.
    pin: keep the exponentials inside the window of the asynchronous P V product. More overlap in
        a warpgroup, one more branch a block; the two warpgroups already cover for each other.
    persistent_rounds: with fewer tiles than this many a multiprocessor, one program a
        multiprocessor strides over them, which hides the start of a tile behind the end of the last
        and pays for short rows; from there on one program a tile, which the hardware balances.
    """

    stages: int
    pin: bool = False
    persistent_rounds: int = 128

    def programs(self, tiles: int, multiprocessors: int) -> int:
        """The size of the launch grid."""
        persistent = tiles < self.persistent_rounds * multiprocessors
        return min(tiles, multiprocessors) if persistent else tiles


def uses_hopper_kernel(
    capability: tuple[int, int],
    head_dim: int,
    block_size: int,
    element: ElementClass,
    *,
    q_offset: int = 0,
    descriptors: bool = True,
) -> bool:
    """Whether attention takes the warp-specialised kernel; all other calls take the portable one.

    q_offset: a multiple of the block size, or the first tile would start at a negative row, which
        the copies of the kernel cannot address. Chunked prefill meets this with aligned chunks.
    descriptors: whether tensor descriptors can address q, k and v.
    """
    return (
        capability[0] == 9
        and element == "half"
        and head_dim in HOPPER
        and block_size == 128
        and q_offset % block_size == 0
        and descriptors
    )


def padded_head_dim(head_dim: int) -> int:
    """The tile width of a head: 80 and 96 run in tiles of 128 over the true width."""
    if head_dim not in HEAD_DIMS:
        raise UnsupportedError(
            f"head_dim {head_dim} has no Triton kernel",
            hint=f"supported: {', '.join(map(str, HEAD_DIMS))}; or use the reference kernels",
        )
    return 128 if head_dim in (80, 96) else head_dim


def kernel_config(
    operation: Operation,
    capability: tuple[int, int],
    head_dim: int,
    block_size: int,
    element: ElementClass,
    *,
    descriptors: bool = True,
) -> KernelConfig:
    """The configuration of the nearest architecture at or below `capability`.

    descriptors=False asks for one that loads by pointer, for tensors a descriptor cannot address.
    """
    if capability < (8, 0):
        raise UnsupportedError(
            f"compute capability {capability[0]}.{capability[1]} is under 8.0",
            hint="use the reference kernels",
        )
    dim = padded_head_dim(head_dim)
    if element == "float":
        return _FLOAT[operation, dim]
    # Consumer Blackwell (12.x) has neither wgmma nor Hopper's shared memory; 10.x has both sizes.
    hopper = (9, 0) <= capability < (12, 0)
    table = _SM90 if hopper and descriptors else _SM80
    return table[operation, dim, block_size]


def _hopper(block_m: int, block_n: int, warps: int, stages: int) -> KernelConfig:
    return KernelConfig(
        block_m=block_m, block_n=block_n, num_warps=warps, num_stages=stages, descriptors=True
    )


def _rotated(block_m: int, block_n: int, warps: int, stages: int) -> KernelConfig:
    return replace(_hopper(block_m, block_n, warps, stages), rotated=True)


def _pointer(block_m: int, block_n: int, warps: int, stages: int) -> KernelConfig:
    return KernelConfig(block_m=block_m, block_n=block_n, num_warps=warps, num_stages=stages)


# head_dim of the warp-specialised kernel, which is limited to one program a multiprocessor by its
# registers: the rings take the shared memory that Q and the output leave.
HOPPER: dict[int, HopperConfig] = {64: HopperConfig(stages=4), 128: HopperConfig(stages=2)}

# (operation, padded head_dim, block size), fp16 and bf16.
_SM90: dict[tuple[str, int, int], KernelConfig] = {
    ("attention", 64, 64): _rotated(64, 64, 4, 3),
    ("attention", 64, 128): _rotated(128, 128, 8, 3),
    ("attention", 128, 64): _rotated(64, 64, 4, 2),
    ("attention", 128, 128): _rotated(128, 64, 8, 3),
    ("attention", 256, 64): _rotated(64, 64, 8, 2),
    ("attention", 256, 128): _hopper(64, 64, 8, 2),
    ("row_lse", 64, 64): _hopper(64, 64, 4, 3),
    ("row_lse", 64, 128): _hopper(128, 128, 8, 2),
    ("row_lse", 128, 64): _hopper(64, 64, 4, 2),
    ("row_lse", 128, 128): _hopper(128, 128, 8, 2),
    ("row_lse", 256, 64): _hopper(64, 64, 4, 2),
    ("row_lse", 256, 128): _hopper(128, 64, 8, 2),
    ("mass", 64, 64): _hopper(64, 64, 4, 3),
    ("mass", 64, 128): _hopper(128, 128, 8, 2),
    ("mass", 128, 64): _hopper(64, 64, 4, 2),
    ("mass", 128, 128): _hopper(128, 128, 8, 2),
    ("mass", 256, 64): _hopper(64, 64, 4, 2),
    ("mass", 256, 128): _hopper(128, 64, 8, 2),
    ("estimate", 64, 64): _hopper(64, 64, 4, 1),
    ("estimate", 64, 128): _hopper(64, 64, 4, 1),
    ("estimate", 128, 64): _hopper(64, 64, 4, 1),
    ("estimate", 128, 128): _hopper(64, 64, 4, 1),
    ("estimate", 256, 64): _hopper(64, 64, 8, 1),
    ("estimate", 256, 128): _hopper(64, 64, 8, 1),
}

_SM80: dict[tuple[str, int, int], KernelConfig] = {
    ("attention", 64, 64): _pointer(64, 64, 4, 3),
    ("attention", 64, 128): _pointer(128, 64, 8, 3),
    ("attention", 128, 64): _pointer(64, 32, 4, 3),
    ("attention", 128, 128): _pointer(64, 32, 4, 3),
    ("attention", 256, 64): _pointer(64, 32, 8, 2),
    ("attention", 256, 128): _pointer(64, 32, 8, 2),
    ("row_lse", 64, 64): _pointer(64, 64, 4, 3),
    ("row_lse", 64, 128): _pointer(128, 64, 8, 3),
    ("row_lse", 128, 64): _pointer(64, 64, 4, 2),
    ("row_lse", 128, 128): _pointer(128, 64, 8, 2),
    ("row_lse", 256, 64): _pointer(64, 32, 8, 2),
    ("row_lse", 256, 128): _pointer(64, 32, 8, 2),
    ("mass", 64, 64): _pointer(64, 64, 4, 3),
    ("mass", 64, 128): _pointer(128, 64, 8, 2),
    ("mass", 128, 64): _pointer(64, 64, 4, 2),
    ("mass", 128, 128): _pointer(128, 64, 8, 2),
    ("mass", 256, 64): _pointer(64, 32, 8, 2),
    ("mass", 256, 128): _pointer(64, 32, 8, 2),
    ("estimate", 64, 64): _pointer(64, 64, 4, 1),
    ("estimate", 64, 128): _pointer(64, 64, 4, 1),
    ("estimate", 128, 64): _pointer(64, 64, 4, 1),
    ("estimate", 128, 128): _pointer(64, 64, 4, 1),
    ("estimate", 256, 64): _pointer(64, 64, 8, 1),
    ("estimate", 256, 128): _pointer(64, 64, 8, 1),
}

# float32 runs on the FMA units: small tiles, or the operands do not fit the registers.
_FLOAT: dict[tuple[str, int], KernelConfig] = {
    ("attention", 64): _pointer(16, 32, 4, 1),
    ("attention", 128): _pointer(32, 32, 8, 1),
    ("attention", 256): _pointer(16, 16, 8, 1),
    ("row_lse", 64): _pointer(16, 32, 4, 1),
    ("row_lse", 128): _pointer(16, 32, 8, 1),
    ("row_lse", 256): _pointer(16, 16, 8, 1),
    ("mass", 64): _pointer(16, 32, 4, 1),
    ("mass", 128): _pointer(32, 16, 8, 1),
    ("mass", 256): _pointer(16, 16, 8, 1),
    ("estimate", 64): _pointer(32, 32, 4, 1),
    ("estimate", 128): _pointer(32, 32, 8, 1),
    ("estimate", 256): _pointer(16, 16, 8, 1),
}
