"""Checks the kernels of the query-aware choice against float64; prints one JSON line a check.

    TRITON_INTERPRET=1 python tests/kernel/pooled_run.py [--device cuda [--small]]

Started by test_pooled_interpreted.py; with --device cuda (and without TRITON_INTERPRET) the same on
a GPU, long prompts included unless --small leaves them out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).parent))
from interpreted_run import gap, poison
from selection_cases import apart

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.base import BlockMeans
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.kernels.triton_backend import TritonKernels

SLACK = 2e-6
ORACLE = ReferenceKernels()


@dataclass(frozen=True, kw_only=True)
class Case:
    q_len: int
    kv_len: int
    block: int = 64
    batch: int = 1
    heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    dtype: torch.dtype = torch.float16

    @property
    def grid(self) -> BlockGrid:
        return BlockGrid(q_len=self.q_len, kv_len=self.kv_len, block_size=self.block)


SMALL = (
    Case(q_len=1, kv_len=1),
    Case(q_len=130, kv_len=130, batch=2),
    Case(q_len=70, kv_len=1000, block=128, dim=80, dtype=torch.float32),
    Case(q_len=233, kv_len=391, heads=4, kv_heads=2, dim=128),
)
LARGE = (
    Case(q_len=433, kv_len=711, heads=4, kv_heads=2, dim=128),
    Case(q_len=777, kv_len=777, heads=2, kv_heads=1, dim=64),
    Case(q_len=2111, kv_len=2111, heads=3, kv_heads=1, dim=256, batch=2),
    Case(q_len=32_768, kv_len=32_768, block=128, heads=9, kv_heads=3, dtype=torch.bfloat16),
    Case(q_len=9_000, kv_len=70_001, block=64, heads=9, kv_heads=3, dtype=torch.bfloat16),
    Case(q_len=131_072, kv_len=131_072, block=128, heads=8, kv_heads=2, dim=128),
)


def inputs(case: Case, device: str) -> tuple[Tensor, Tensor]:
    """q and k whose means drift from block to block, laid out as a model's projections are."""
    g = torch.Generator().manual_seed(case.kv_len)

    def drawn(length: int, heads: int) -> Tensor:
        x = torch.randn(case.batch, length, heads, case.dim, generator=g)
        x += 2 * torch.randn(case.batch, 1, heads, case.dim, generator=g)
        steps = -(-length // 50)
        drift = torch.randn(case.batch, steps, heads, case.dim, generator=g)
        x += drift.repeat_interleave(50, dim=1)[:, :length]
        return x.to(device, case.dtype).transpose(1, 2)

    return drawn(case.q_len, case.heads), drawn(case.kv_len, case.kv_heads)


def doubled(means: BlockMeans) -> BlockMeans:
    return replace(means, queries=means.queries.double(), keys=means.keys.double())


def checks(kernels: TritonKernels, case: Case, device: str) -> Iterator[tuple[str, bool]]:
    grid, scale = case.grid, case.dim**-0.5
    q, k = inputs(case, device)
    some = apart(torch.arange(case.heads - 1, -1, -2, device=device))
    for heads in (None, some):
        means = kernels.pool(q, k, grid, heads=heads)
        exact = ORACLE.pool(q.double(), k.double(), grid, heads=heads)
        close = gap(means.queries, exact.queries) < 2e-5 and gap(means.keys, exact.keys) < 2e-5
        yield "pool", close and means.queries.shape == exact.queries.shape
        # From here on of the same means: their rounding is no part of what is checked.
        double = doubled(means)
        row = kernels.pooled_row(means, grid, scale=scale)
        yield "pooled_row", gap(row, ORACLE.pooled_row(double, grid, scale=scale)) < 2e-6
        yield from choices(kernels, means, double, grid, scale)
        yield "query_aware-ties", ties(kernels, means, grid, scale)


def choices(
    kernels: TritonKernels, means: BlockMeans, double: BlockMeans, grid: BlockGrid, scale: float
) -> Iterator[tuple[str, bool]]:
    batch, slots = means.queries.shape[:2]
    device = means.queries.device
    causal = grid.causal_mask(device)
    spread = torch.linspace(0.3, 1.0, slots, device=device)

    def choose(gamma: Tensor) -> Tensor:
        return ORACLE.query_aware(double, grid, gamma=gamma, scale=scale)

    def between(found: Tensor, gamma: Tensor, extra: Tensor | bool = False) -> bool:
        """Rounding may only decide what lies at the threshold."""
        whole = gamma >= 1
        under = choose(torch.where(whole, gamma, gamma - SLACK)) | extra
        over = choose(torch.where(whole, gamma, gamma + SLACK)) | extra
        return bool((found >= under).all() and (found <= over).all())

    for gamma in (0.9, 1.0, spread):
        found = kernels.query_aware(means, grid, gamma=gamma, scale=scale)
        level = gamma if isinstance(gamma, Tensor) else torch.full_like(spread, gamma)
        yield "query_aware", between(found, level)
    again = kernels.query_aware(means, grid, gamma=spread, scale=scale)
    yield "query_aware-repeats", torch.equal(found, again)
    everything = kernels.query_aware(means, grid, gamma=1.0, scale=scale)
    yield "query_aware-whole", torch.equal(everything, causal.expand_as(everything))
    # United in place with masks of a larger store; gamma 0 leaves a mask as it is.
    spread[-1] = 0
    g = torch.Generator().manual_seed(3)
    size = (batch, slots + 3, grid.num_rows, grid.num_cols)
    store = (torch.rand(size, generator=g) < 0.1).to(device)
    places = apart(torch.randperm(slots + 3, generator=g)[:slots].to(device))
    before = store.index_select(1, places)
    fresh = kernels.query_aware(means, grid, gamma=spread.clamp(min=0.1), scale=scale)
    fresh[:, -1] = False
    grown = store.clone()
    kernels.query_aware(means, grid, gamma=spread, scale=scale, onto=grown, slots=places)
    yield "query_aware-united", torch.equal(grown, store.index_copy(1, places, before | fresh))
    own = before.clone()
    kernels.query_aware(means, grid, gamma=spread, scale=scale, onto=own)
    yield "query_aware-onto", torch.equal(own, before | fresh)


def ties(kernels: TritonKernels, means: BlockMeans, grid: BlockGrid, scale: float) -> bool:
    """Queries of zero like every block alike: the shorter a row, the larger its shares, and of
    equal ones the lower columns come first. Gamma lies in the middle of a block's share."""
    row, device = min(grid.num_rows // 2, 7), means.queries.device
    length = grid.num_cols - grid.num_rows + row + 1
    taken = length // 2 + 1
    even = replace(means, queries=torch.zeros_like(means.queries))
    gamma = (row + (taken - 0.5) / length) / grid.num_rows
    found = kernels.query_aware(even, grid, gamma=gamma, scale=scale)
    expected = grid.diagonal_mask(device)
    expected[:, 0] = True
    expected[:row] = grid.causal_mask(device)[:row]
    expected[row, :taken] = True
    return torch.equal(found, expected.expand_as(found))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--small", action="store_true", help="no long prompts on a GPU either")
    options = parser.parse_args()
    device = options.device
    torch.set_num_threads(1)
    poison()
    capability = (8, 0) if device == "cpu" else None
    kernels = TritonKernels(capability=capability, hopper=False)
    for case in SMALL if options.small or device == "cpu" else SMALL + LARGE:
        for name, passed in checks(kernels, case, device):
            print(json.dumps({"check": name, "case": str(case), "passed": passed}), flush=True)


if __name__ == "__main__":
    main()
