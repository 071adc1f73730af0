"""What the launches of the Triton backend share: input checks, key sources, common arguments.

All of it follows from the layouts of the tensors, never from where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.errors import UnsupportedError, UsageError
from sp_runtime.kernels.tuning import ElementClass, KernelConfig, padded_head_dim

# Turns the scale of a softmax into that of its base-2 form.
LOG2_E = 1.4426950408889634
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


class Layout(NamedTuple):
    """All that a launch must know of a tensor; aligned: to 16 bytes, see `Program`."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    aligned: bool


def layout(tensor: Tensor) -> Layout:
    return Layout(
        tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.data_ptr() % 16 == 0
    )


def check_inputs(q: Layout, kv: Layout, grid: BlockGrid, scale: float) -> None:
    """Refuse what the kernels would compute wrongly."""
    if len(q.shape) != 4 or len(kv.shape) != 4:
        raise UsageError("q, k and v must be [batch, heads, length, head_dim]")
    if q.dtype not in DTYPES or kv.dtype != q.dtype:
        raise UnsupportedError(
            f"dtypes {q.dtype} and {kv.dtype} have no Triton kernel",
            hint="use one of float16, bfloat16, float32 for all of q, k and v",
        )
    if kv.device != q.device:
        raise UsageError(f"q is on {q.device}, k or v on {kv.device}")
    same = q.shape[0] == kv.shape[0] and q.shape[3] == kv.shape[3]
    if not same or q.shape[1] % kv.shape[1] != 0:
        raise UsageError(f"q {tuple(q.shape)} and k or v {tuple(kv.shape)} do not fit together")
    if (q.shape[2], kv.shape[2]) != (grid.q_len, grid.kv_len):
        raise UsageError(
            f"lengths {q.shape[2]} and {kv.shape[2]} are not the grid's "
            f"{grid.q_len} and {grid.kv_len}"
        )
    if q.strides[3] != 1 or kv.strides[3] != 1:
        raise UsageError("the last dimension of q, k and v must be contiguous")
    if not (math.isfinite(scale) and scale > 0):
        raise UsageError(f"scale {scale} is not a positive number")


def check_index(q: Tensor, index: BlockIndex) -> None:
    batch, heads = q.shape[:2]
    if (index.batch, index.num_heads) != (batch, heads):
        raise UsageError(
            f"index is for {index.batch} x {index.num_heads} heads, q has {batch} x {heads}"
        )
    if index.row_ptr.device != q.device:
        raise UsageError(f"q is on {q.device}, the index on {index.row_ptr.device}")


def check_heads(heads: Tensor, q: Tensor) -> None:
    if heads.dim() != 2 or heads.shape[0] != q.shape[0] or heads.dtype != torch.int64:
        raise UsageError(
            f"heads must be int64 [{q.shape[0]}, slots], not {heads.dtype} {tuple(heads.shape)}"
        )
    if heads.device != q.device:
        raise UsageError(f"q is on {q.device}, heads on {heads.device}")


def element_class(dtype: torch.dtype) -> ElementClass:
    return "float" if dtype == torch.float32 else "half"


def addressable(of: Layout) -> bool:
    """Whether a tensor descriptor can hold it: 16-byte aligned base and outer strides."""
    size = of.dtype.itemsize
    return of.aligned and all(
        stride > 0 and stride * size % 16 == 0 for stride in outer_strides(of)
    )


def outer_strides(of: Layout) -> list[int]:
    """Strides of the first three dimensions; a dimension of one has none that matters."""
    return [
        stride if length > 1 else 16 * of.shape[3]
        for length, stride in zip(of.shape[:3], of.strides[:3], strict=True)
    ]


def key_sources(
    config: KernelConfig, **sources: Layout
) -> dict[str, Callable[[Tensor], TensorDescriptor]]:
    """How the kernel takes K or V [B, Hkv, N, D]: through these descriptors, or by pointer."""
    if not config.descriptors:
        return {}

    def describe(of: Layout) -> Callable[[Tensor], TensorDescriptor]:
        block = [1, 1, config.block_n, padded_head_dim(of.shape[3])]
        shape, strides = list(of.shape), [*outer_strides(of), 1]
        return lambda tensor: TensorDescriptor(tensor, shape, strides, block)

    return {name: describe(source) for name, source in sources.items()}


def strides(name: str, of: Layout) -> dict[str, Any]:
    return {f"stride_{name}{axis}": of.strides[i] for i, axis in enumerate("bhn")}


def tile_constants(q: Layout, grid: BlockGrid, config: KernelConfig) -> dict[str, Any]:
    """The compile-time arguments that all matrix kernels share."""
    return {
        "HEAD_DIM": q.shape[3],
        "DIM": padded_head_dim(q.shape[3]),
        "BLOCK": grid.block_size,
        "BM": config.block_m,
        "BN": config.block_n,
        "DESC": config.descriptors,
        # "tf32" is ignored for half-precision operands.
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
    }
