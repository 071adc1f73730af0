"""The Triton backend with FlashAttention-4 in place of its attention kernel.

Importing this module imports Triton, and making the backend imports flash-attn-4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.block_index_export import to_fa4_tensors
from sp_runtime.errors import UnsupportedError
from sp_runtime.kernels.fa4_launch import fa4_attention, load_fa4, shape_obstacle
from sp_runtime.kernels.launch import Layout, check_index, check_inputs, layout
from sp_runtime.kernels.program import kept
from sp_runtime.kernels.triton_backend import TritonKernels

_LABEL = "FlashAttention-4, block-sparse"


class FA4Kernels(TritonKernels):
    """`sp_runtime.kernels.base.Kernels` on a GPU of compute capability 9.x, for fp16 and bf16,
    blocks of 128 and a head_dim of up to 128.

    Only attention is FlashAttention-4's: estimates, masks, index and block mass are those of the
    Triton backend. Whatever it cannot run is refused, and never goes to another kernel. The query
    offset of a chunk must be a multiple of 128.

    Raises UnsupportedError where flash-attn-4 cannot be imported.
    """

    name = "fa4"

    def __init__(self) -> None:
        super().__init__()
        load_fa4()

    def describe(self, head_dim: int, block_size: int, dtype: torch.dtype) -> str:
        """See `Kernels.describe`; for a shape that is refused, why."""
        obstacle = shape_obstacle(head_dim, block_size, dtype)
        return _LABEL if obstacle is None else f"none: {obstacle}"

    def attention_kernel(self, q: Tensor, k: Tensor, v: Tensor, grid: BlockGrid) -> str:
        """See `Kernels.attention_kernel`."""
        return self.describe(q.shape[-1], grid.block_size, q.dtype)

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `Kernels.attention`.

        Raises UnsupportedError for a shape, dtype or query offset that FlashAttention-4 does not
        take.
        """
        _check(layout(q), layout(k), layout(v), index.grid, scale)
        check_index(q, index)
        with torch.cuda.device_of(q):
            out, lse = fa4_attention(q, k, v, to_fa4_tensors(index), scale=scale)
        assert lse is not None
        return out, lse


@kept
def _check(q: Layout, k: Layout, v: Layout, grid: BlockGrid, scale: float) -> None:
    check_inputs(q, k, grid, scale)
    check_inputs(q, v, grid, scale)
    obstacle = shape_obstacle(q.shape[3], grid.block_size, q.dtype)
    if obstacle is not None:
        raise UnsupportedError(obstacle, hint='use kernels="triton"')
