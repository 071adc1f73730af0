"""Is an attention output right? Chosen heads and block rows against float64, the rest finite."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid

# ||found - expected|| / ||expected|| of one block row: weights are rounded to the inputs' type, and
# a block too few or too many of a thousand moves a row of random values by some 3e-2.
TOLERANCES = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-4}
_CHECKED_HEADS = 4
_CHECKED_ROWS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """One attention call: q [1, H, N, D], k and v [1, Hkv, N, D]; scale multiplies q k^T."""

    q: Tensor
    k: Tensor
    v: Tensor
    grid: BlockGrid
    scale: float

    @property
    def group(self) -> int:
        """Query heads of one KV head."""
        return self.q.shape[1] // self.k.shape[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What was found of an output.

    error: the largest relative error of a checked block row (NaN counts as infinite); bound: what
    it may be. finite: no element of the whole output is NaN or infinite. rows: block rows checked.
    """

    error: float
    bound: float
    finite: bool
    rows: int

    @property
    def ok(self) -> bool:
        return self.finite and self.error <= self.bound


def check_output(out: Tensor, inputs: Inputs, mask: Tensor, *, seed: int) -> Check:
    """Compare out [1, H, N, D] with attention over the blocks of mask, bool [1, H, R, C].

    Heads and rows: the first, the last and random ones, the same for equal seeds.
    """
    grid = inputs.grid
    chooser = random.Random(seed)
    heads = _some(inputs.q.shape[1], _CHECKED_HEADS, chooser)
    worst, count = 0.0, 0
    for head in heads:
        for row in _some(grid.num_rows, _CHECKED_ROWS, chooser):
            queries = slice(row * grid.block_size, min((row + 1) * grid.block_size, grid.kv_len))
            expected = reference_rows(inputs, mask[0, head, row], head, queries)
            found = out[0, head, queries].double()
            error = float((found - expected).norm() / expected.norm())
            worst = max(worst, error if error == error else float("inf"))
            count += 1
    return Check(
        error=worst,
        bound=TOLERANCES[inputs.q.dtype],
        finite=bool(torch.isfinite(out).all()),
        rows=count,
    )


def reference_rows(inputs: Inputs, blocks: Tensor, head: int, queries: slice) -> Tensor:
    """float64 [Q, D]: causal attention of these queries over the key blocks of bool [C]."""
    grid, device = inputs.grid, inputs.q.device
    keys = (
        blocks.nonzero() * grid.block_size + torch.arange(grid.block_size, device=device)
    ).flatten()
    keys = keys[keys < queries.stop]
    q = inputs.q[0, head, queries].double()
    k = inputs.k[0, head // inputs.group].index_select(0, keys).double()
    v = inputs.v[0, head // inputs.group].index_select(0, keys).double()
    positions = torch.arange(queries.start, queries.stop, device=device)
    scores = (q @ k.T) * inputs.scale
    scores.masked_fill_(keys > positions[:, None], -torch.inf)
    return scores.softmax(-1) @ v


def poison(like: Tensor) -> None:
    """Leave NaN where the allocator takes the next output from, so that unwritten elements show."""
    torch.full(like.shape, torch.nan, dtype=like.dtype, device=like.device)


def _some(count: int, wanted: int, chooser: random.Random) -> list[int]:
    inner = list(range(1, count - 1))
    picked = chooser.sample(inner, min(len(inner), max(0, wanted - 2)))
    return sorted({0, *picked, count - 1})
