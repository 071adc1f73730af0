"""One of several processes that take turns on a GPU: attention over and over, every call checked.

    python tests/kernel/shared_gpu_run.py SECONDS

Prints the calls made and those whose output differs from the portable kernel's. Buffers start as
NaN, so that a tile which nobody computed shows. Alone on a GPU the kernels are never switched out
in the middle; see `hopper._take` for what a switch does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.kernels.triton_backend import TritonKernels

# head_dim, query heads, KV heads, tokens: several tiles a multiprocessor
SHAPES = ((64, 9, 3, 32000), (128, 8, 2, 16000), (128, 32, 8, 8192))
DENSITY = 0.15
CALLS = 8
# Twice the rounding of a bfloat16 output of about one.
TOLERANCE = 2.0**-4


def case(dim: int, heads: int, kv_heads: int, tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v and a random mask [1, H, R, C], the same on every run."""
    torch.manual_seed(0)
    q, k, v = (
        torch.randn(1, n, tokens, dim, device="cuda", dtype=torch.bfloat16)
        for n in (heads, kv_heads, kv_heads)
    )
    blocks = -(-tokens // 128)
    return q, k, v, torch.rand(1, heads, blocks, blocks, device="cuda") < DENSITY


def check(shape: tuple[int, int, int, int], seconds: float) -> Iterator[bool]:
    """Whether each call gave what the portable kernel gives."""
    q, k, v, mask = case(*shape)
    grid = BlockGrid(q_len=q.shape[2], kv_len=k.shape[2], block_size=128)
    kernels, scale = TritonKernels(), q.shape[3] ** -0.5
    dense = torch.zeros(1, q.shape[1], dtype=torch.bool, device="cuda")
    index: BlockIndex = kernels.build_index(mask & grid.causal_mask("cuda"), grid, dense)
    expected, _ = TritonKernels(hopper=False).attention(q, k, v, index, scale=scale)
    start = time.monotonic()
    while time.monotonic() - start < seconds:
        outs = [kernels.attention(q, k, v, index, scale=scale)[0] for _ in range(CALLS)]
        for out in outs:
            yield bool(((out - expected).abs() <= TOLERANCE).all())  # NaN compares as False


def main() -> None:
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    results = [
        right for shape in SHAPES for right in check(shape, float(sys.argv[1]) / len(SHAPES))
    ]
    print(f"calls {len(results)} wrong {results.count(False)}")


if __name__ == "__main__":
    main()
