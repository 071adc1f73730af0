"""The block mass of one pivot head beside that head's dense attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sp_profile.bench.check import Inputs
from sp_profile.bench.clock import Clock, timer_on
from sp_profile.bench.environment import Environment, environment
from sp_profile.bench.inputs import LayerShape, random_inputs
from sp_profile.bench.stats import TimeStats
from sp_runtime.block_index import BlockIndex
from sp_runtime.kernels.base import Kernels

# Largest absolute error of a block's mass: weights come from half-precision products.
_BOUND = 2e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class MassRow:
    """One head alone, at one length.

    status: "ok" or "wrong" (no figures then). error: largest absolute error over the checked block
    rows. attention: dense attention of that head. ratio: mass median / attention median.
    """

    shape: LayerShape
    status: str
    error: float
    mass: TimeStats | None
    attention: TimeStats | None
    ratio: float | None
    peak_bytes: int | None
    environment: Environment


def mass_row(
    shape: LayerShape, kernels: Kernels, device: torch.device, clock: Clock, seed: int
) -> MassRow:
    """Times `Kernels.block_mass` of head 0 of a shape, after comparing some rows with float64."""
    inputs = random_inputs(shape, device, seed)
    q, k, v = inputs.q[:, :1], inputs.k[:, :1], inputs.v[:, :1]
    full = BlockIndex.full(1, 1, shape.grid, device)
    heads = torch.zeros(1, 1, dtype=torch.int64, device=device)
    with torch.inference_mode():
        _, lse = kernels.attention(q, k, v, full, scale=inputs.scale)

        def call() -> Tensor:
            return kernels.block_mass(q, k, lse, heads, shape.grid, scale=inputs.scale)

        error = _error(call()[0, 0], inputs)
        mass = attention = None
        if error <= _BOUND:
            mass = clock.measure(call)
            attention = clock.measure(lambda: kernels.attention(q, k, v, full, scale=inputs.scale))
    ratio = None
    if mass is not None and attention is not None:
        ratio = mass.times.median_ms / attention.times.median_ms
    return MassRow(
        shape=shape,
        status="ok" if error <= _BOUND else "wrong",
        error=min(error, 1.0),
        mass=None if mass is None else mass.times,
        attention=None if attention is None else attention.times,
        ratio=ratio,
        peak_bytes=None if mass is None else mass.peak_bytes,
        environment=environment(device, timer_on(device) if mass is None else mass.timer),
    )


def _error(mass: Tensor, inputs: Inputs) -> float:
    """Largest difference of mass [R, C] from float64 on the first, the last and two inner rows."""
    grid = inputs.grid
    size = grid.block_size
    worst = 0.0
    for row in {0, grid.num_rows // 3, 2 * grid.num_rows // 3, grid.num_rows - 1}:
        queries = slice(row * size, min((row + 1) * size, grid.kv_len))
        positions = torch.arange(queries.start, queries.stop, device=mass.device)
        keys = torch.arange(queries.stop, device=mass.device)
        q = inputs.q[0, 0, queries].double()
        scores = (q @ inputs.k[0, 0, : queries.stop].double().T) * inputs.scale
        scores.masked_fill_(keys > positions[:, None], -torch.inf)
        weights = scores.softmax(-1).mean(0)
        expected = torch.zeros(grid.num_cols, dtype=torch.float64, device=mass.device)
        expected.index_add_(0, keys // size, weights)
        error = float((mass[row].double() - expected).abs().max())
        worst = max(worst, error if error == error else float("inf"))
    return worst
