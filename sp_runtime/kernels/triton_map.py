"""Launches that find where the largest blocks of whole maps reach a share of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sp_runtime.errors import ResourceError
from sp_runtime.kernels.program import Program, kept
from sp_runtime.kernels.select_map import (
    map_crossing_kernel,
    map_gather_kernel,
    map_sums_kernel,
)
from sp_runtime.kernels.triton_share import memory_bound

# A threshold, or 1.0 where a tensor holds it, the tensor's strides, and whether there is one.
GammaScalars = tuple[float, int, int, bool]
# Thresholds that a pass of `select_map` adds a map up over.
_LEVELS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class MapConfig:
    """part, parts: entries of a part of a map, a multiple of `gathered`, unless that would be more
    than `parts` parts. compared: entries that are held against the thresholds at once; added: parts
    whose sums are read at once; gathered, searched: entries that are taken, and searched, at once;
    warps: of the program that searches.
    """

    part: int = 1024
    parts: int = 64
    compared: int = 512
    added: int = 64
    gathered: int = 1024
    searched: int = 2048
    warps: int = 16


class MapSearching:
    """The search for the threshold of a whole map, on CUDA tensors."""

    map_search = MapConfig()

    def map_threshold(
        self,
        mass: Tensor,
        at_gamma: Tensor,
        level: GammaScalars,
        size: tuple[int, int],
        *,
        room: int,
    ) -> Tensor:
        """int32 [B*S, 2], what `select_map.map_crossing_kernel` finds in the maps of mass.

        mass: float32, B*S maps of equal size, contiguous. at_gamma, level: of `gamma_arguments`.
        size: B and S. room: at least the number of entries of a map that are not 0.
        """
        number = size[0] * size[1]
        count = mass.numel() // max(number, 1)
        search = _search(self.map_search, size, count, room, level)
        device = mass.device
        coarse = torch.empty(number, search.parts, _LEVELS, dtype=torch.float32, device=device)
        fine = torch.empty(coarse.shape, dtype=torch.float32, device=device)
        found = torch.empty(coarse.shape, dtype=torch.int32, device=device)
        scratch = torch.empty(number, room, dtype=torch.float32, device=device)
        value = torch.empty(number, 2, dtype=torch.int32, device=device)
        tensors = {
            "mass_ptr": mass,
            "coarse_ptr": coarse,
            "fine_ptr": fine,
            "found_ptr": found,
        }
        search.coarse(**tensors, gamma_ptr=at_gamma)
        search.fine(**tensors, gamma_ptr=at_gamma)
        search.gather(**tensors, scratch_ptr=scratch, gamma_ptr=at_gamma)
        search.cross(**tensors, scratch_ptr=scratch, value_ptr=value, gamma_ptr=at_gamma)
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class _Search:
    """The launches of a search, and in how many parts it takes a map."""

    parts: int
    coarse: Program
    fine: Program
    gather: Program
    cross: Program


@kept
def _search(
    config: MapConfig, size: tuple[int, int], count: int, room: int, level: GammaScalars
) -> _Search:
    """size: batch, heads."""
    number = size[0] * size[1]
    part = max(config.part, -(-count // config.parts))
    part = config.gathered * -(-part // config.gathered)
    parts = -(-count // part)
    shared: dict[str, Any] = {
        **gamma_scalars(level),
        "count": count,
        "num_heads": size[1],
        "LEVELS": _LEVELS,
        "TILE": config.added,
    }
    grid, launched = (parts, number), memory_bound(4)
    coarse, fine = (
        Program(map_sums_kernel, grid, launched, part=part, FINE=fine, W=config.compared, **shared)
        for fine in (False, True)
    )
    gather = Program(
        map_gather_kernel, grid, launched, part=part, room=room, W=config.gathered, **shared
    )
    cross = Program(
        map_crossing_kernel,
        (number,),
        memory_bound(config.warps),
        parts=parts,
        room=room,
        W=config.searched,
        **shared,
    )
    return _Search(parts=parts, coarse=coarse, fine=fine, gather=gather, cross=cross)


def require_map(rows: int, cols: int) -> None:
    """Raises ResourceError where a place in a map of so many blocks passes int32."""
    if rows * cols >= 2**31:
        raise ResourceError(
            f"a map of {rows} x {cols} blocks passes 2^31", hint="use larger blocks"
        )


def gamma_arguments(
    gamma: float | Tensor, shape: tuple[int, int], unused: Tensor
) -> tuple[Tensor, float, int, int]:
    """What `select_blocks.load_gamma` takes: a tensor [B, H] or a number, which needs no tensor and
    so no launch, and the strides of the tensor; `unused` stands for no tensor."""
    if not isinstance(gamma, Tensor):
        return unused, float(gamma), 0, 0
    if gamma.dim() == 1 and gamma.shape[0] == shape[1]:
        return gamma, 1.0, 0, gamma.stride(0)
    spread = gamma.expand(shape)
    return spread, 1.0, spread.stride(0), spread.stride(1)


def gamma_scalars(gamma: GammaScalars) -> dict[str, Any]:
    number, stride_b, stride_h, tensor = gamma
    return {"gamma": number, "gamma_b": stride_b, "gamma_h": stride_h, "TENSOR": tensor}
