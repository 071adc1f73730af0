"""Inputs on which sums are exact in float32, and every method with settings that leave a choice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.operating_point import OperatingPoint, default_point
from sp_runtime.patterns.base import Decision, LayerInputs
from sp_runtime.patterns.registry import make_pattern_factory
from sp_runtime.profile import Profile

SCALE = 0.25
HEADS, KV_HEADS, DIM = 4, 2, 16


@st.composite
def grids(draw: st.DrawFn, *, longest: int = 700) -> BlockGrid:
    """Ragged ends, query offsets and both block sizes."""
    kv_len = draw(st.integers(1, longest))
    return BlockGrid(
        q_len=draw(st.integers(1, kv_len)),
        kv_len=kv_len,
        block_size=draw(st.sampled_from([64, 128])),
    )


def whole_numbers(grid: BlockGrid, seed: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """q [B, 4, Nq, 16] and k [B, 2, Nk, 16] of small whole numbers, so that sums are exact; key
    blocks lean in directions of their own, so that blocks differ."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randint(-2, 3, shape, generator=generator).float()

    lean = draw(batch, KV_HEADS, grid.num_cols, DIM).repeat_interleave(grid.block_size, dim=2)
    k = draw(batch, KV_HEADS, grid.kv_len, DIM) + lean[:, :, : grid.kv_len]
    q = draw(batch, HEADS, grid.q_len, DIM) + draw(batch, HEADS, 1, DIM)
    return q, k


def inputs_of(q: torch.Tensor, k: torch.Tensor, grid: BlockGrid, layer: int = 0) -> LayerInputs:
    return LayerInputs(layer=layer, q=q, k=k, grid=grid, scale=SCALE, kernels=ReferenceKernels())


@dataclass(frozen=True)
class Case:
    """A method, and what it promises. chunks: aligned chunks take the blocks of the whole."""

    point: OperatingPoint
    chunks: bool

    def decide(self, inputs: LayerInputs, profile: Profile) -> Decision:
        block_size = inputs.grid.block_size
        return make_pattern_factory(self.point, profile, block_size=block_size)().decide(inputs)


def _point(method: str, **settings: object) -> OperatingPoint:
    import dataclasses

    return dataclasses.replace(default_point(method), min_tokens=1, **settings)


CASES = {
    "streaming": Case(_point("streaming", sink=70, window=130), chunks=True),
    "lm_infinite": Case(_point("lm_infinite", sink=10, window=100), chunks=True),
    "vertical_slash": Case(_point("vertical_slash", gamma=0.5, min_budget=64), chunks=False),
    "minference": Case(_point("minference"), chunks=False),
    "flexprefill": Case(_point("flexprefill", gamma=0.5, min_budget=64, kappa=0.3), chunks=False),
    "infllm": Case(_point("infllm", sink=64, window=70, top_k=128), chunks=True),
    "hip": Case(_point("hip", top_k=192), chunks=True),
    "moa": Case(_point("moa"), chunks=False),
    "xattention": Case(_point("xattention", tau=0.6, stride=8), chunks=False),
    "sampled": Case(_point("sampled", gamma=0.5, stride=4), chunks=False),
}
