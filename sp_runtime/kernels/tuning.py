"""Pinned kernel configurations by architecture: a frozen table, no autotuning.

The run time of sparse attention depends on the data, which an autotuner's key does not hold, and a
benchmark inside a prefill synchronises. Every entry compiles without register spills and within the
shared memory of its architecture: 163 KiB on sm_80, 99 KiB on sm_86 and sm_89, 227 KiB on sm_90.

To tune anew, time what `candidates` lists (`TritonKernels(pinned={operation: config})` runs one,
`sp-run bench kernel --tune` does it and prints the best) and write the winner into the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from sp_runtime.errors import UnsupportedError

Operation = Literal["attention", "row_lse", "mass", "estimate"]
HopperOperation = Literal["hopper", "hopper_mass"]
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
    q_slots: of the Q ring; with 2, the queries of the next tile are copied during this one.
    dynamic: a program takes the next tile that is left, and not every n-th: rows of unequal
        length, as those of a dense head among sparse ones, then balance.
    """

    stages: int
    q_slots: int = 2
    dynamic: bool = True

    def programs(self, tiles: int, multiprocessors: int) -> int:
        """The size of the launch grid: a program a multiprocessor, which takes tile after tile."""
        return min(tiles, multiprocessors)


@dataclass(frozen=True, kw_only=True, slots=True)
class HopperMassConfig:
    """How the warp-specialised kernel of `hopper_mass.py` runs.

    stages: slots of the K ring. q_slots: as in `HopperConfig`.
    min_steps, max_steps: bounds of the steps (a key block for 256 queries) of one program; fewer
        waste the start of a program, more leave multiprocessors idle at the end.
    """

    stages: int
    q_slots: int
    min_steps: int = 4
    max_steps: int = 512

    def length(self, steps: int, multiprocessors: int) -> int:
        """Steps of a program, for `steps` of one head: equal rounds over all multiprocessors."""
        rounds = -(-steps // (multiprocessors * self.max_steps))
        return max(self.min_steps, -(-steps // (multiprocessors * rounds)))


AnyConfig = KernelConfig | HopperConfig | HopperMassConfig


def uses_hopper_kernel(
    capability: tuple[int, int],
    head_dim: int,
    block_size: int,
    element: ElementClass,
    *,
    descriptors: bool = True,
) -> bool:
    """Whether attention and block mass take the warp-specialised kernels, else the portable ones.

    descriptors: whether tensor descriptors can address q, k and v.
    """
    return (
        capability[0] == 9
        and element == "half"
        and head_dim in HOPPER
        and block_size == 128
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


def pinned(
    operation: Operation | HopperOperation,
    capability: tuple[int, int],
    head_dim: int,
    block_size: int,
    element: ElementClass,
) -> AnyConfig:
    """The configuration that the backend takes for an operation; UnsupportedError if it has none.

    "hopper" is attention and "hopper_mass" block mass on the warp-specialised kernels.
    """
    if operation != "hopper" and operation != "hopper_mass":
        return kernel_config(operation, capability, head_dim, block_size, element)
    if not uses_hopper_kernel(capability, head_dim, block_size, element):
        raise UnsupportedError(
            f"no warp-specialised kernel for compute capability {capability[0]}.{capability[1]}, "
            f"head_dim {head_dim}, block size {block_size}, {element} precision",
            hint="tune the operations attention and mass instead",
        )
    return HOPPER[head_dim] if operation == "hopper" else HOPPER_MASS[head_dim]


def candidates(
    operation: Operation | HopperOperation,
    capability: tuple[int, int],
    head_dim: int,
    block_size: int,
    element: ElementClass,
) -> tuple[AnyConfig, ...]:
    """Configurations worth timing, the pinned one first.

    Some of a portable kernel may not fit the GPU, which then refuses the launch.
    """
    kept = pinned(operation, capability, head_dim, block_size, element)
    others: list[AnyConfig] = []
    if isinstance(kept, HopperConfig):
        others = [replace(kept, dynamic=False), replace(kept, q_slots=1)]
        if head_dim == 64:  # at 128 the shared memory has room for two stages only
            others += [replace(kept, stages=stages) for stages in (2, 3, 5)]
    elif isinstance(kept, HopperMassConfig):
        shapes = ((4, 1), (3, 2), (2, 2)) if head_dim == 128 else ((4, 2), (6, 2), (8, 1))
        others = [replace(kept, stages=stages, q_slots=q) for stages, q in shapes]
        others += [replace(kept, max_steps=steps) for steps in (128, 2048)]
    elif element == "half":
        others = list(_portable_candidates(operation, kept, block_size))
    return tuple(dict.fromkeys([kept, *others]))


def _portable_candidates(
    operation: str, kept: KernelConfig, block_size: int
) -> Iterator[KernelConfig]:
    """Every tile shape of either table at other depths of the pipeline."""
    for (name, _, block), config in (*_SM90.items(), *_SM80.items()):
        if (name, block) != (operation, block_size):
            continue
        for stages in (1,) if operation == "estimate" else (2, 3, 4):
            changed = replace(
                kept,
                block_m=config.block_m,
                block_n=config.block_n,
                num_warps=config.num_warps,
                num_stages=stages,
            )
            yield changed
            if operation == "attention" and kept.descriptors:
                yield replace(changed, rotated=not kept.rotated)


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
HOPPER_MASS: dict[int, HopperMassConfig] = {
    64: HopperMassConfig(stages=6, q_slots=2),
    128: HopperMassConfig(stages=3, q_slots=2),
}

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
    ("row_lse", 256, 64): _pointer(64, 64, 8, 2),
    ("row_lse", 256, 128): _pointer(64, 32, 8, 2),
    ("mass", 64, 64): _pointer(64, 64, 4, 3),
    ("mass", 64, 128): _pointer(128, 64, 8, 2),
    ("mass", 128, 64): _pointer(64, 64, 4, 2),
    ("mass", 128, 128): _pointer(128, 64, 8, 2),
    ("mass", 256, 64): _pointer(64, 32, 8, 2),
    ("mass", 256, 128): _pointer(64, 64, 8, 2),
    ("estimate", 64, 64): _pointer(64, 64, 4, 1),
    ("estimate", 64, 128): _pointer(64, 64, 8, 1),
    ("estimate", 128, 64): _pointer(64, 64, 4, 1),
    ("estimate", 128, 128): _pointer(64, 64, 8, 1),
    ("estimate", 256, 64): _pointer(64, 64, 8, 1),
    ("estimate", 256, 128): _pointer(32, 32, 8, 1),
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
    ("estimate", 256): _pointer(16, 16, 4, 1),
}
