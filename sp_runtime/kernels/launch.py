"""What every launch of the Triton backend needs: input checks, key sources, shared arguments."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import UnsupportedError, UsageError
from sp_runtime.kernels.tuning import ElementClass, KernelConfig, padded_head_dim

# Turns the scale of a softmax into that of its base-2 form.
LOG2_E = 1.4426950408889634
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def launch(kernel: Any, grid: tuple[int, ...], config: KernelConfig | None, **args: Any) -> None:
    """The one place that starts a kernel; without a config, the memory-bound default."""
    kernel[grid](
        **args,
        num_warps=4 if config is None else config.num_warps,
        num_stages=1 if config is None else config.num_stages,
        # Explicit: later Triton versions switch it off, and s * c - m must stay one instruction.
        enable_fp_fusion=True,
    )


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    if tensor.is_cuda:
        return torch.cuda.device(tensor.device)
    if not triton.knobs.runtime.interpret:
        raise UnsupportedError(
            f"the Triton kernels need CUDA tensors, not {tensor.device.type}",
            hint="use the reference kernels on this device",
        )
    return nullcontext()


def check_inputs(q: Tensor, kv: Tensor, grid: BlockGrid, scale: float) -> None:
    """Refuse what the kernels would compute wrongly."""
    if q.dim() != 4 or kv.dim() != 4:
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
    if q.stride(3) != 1 or kv.stride(3) != 1:
        raise UsageError("the last dimension of q, k and v must be contiguous")
    if not (math.isfinite(scale) and scale > 0):
        raise UsageError(f"scale {scale} is not a positive number")


def check_heads(heads: Tensor, q: Tensor) -> None:
    if heads.dim() != 2 or heads.shape[0] != q.shape[0] or heads.dtype != torch.int64:
        raise UsageError(
            f"heads must be int64 [{q.shape[0]}, slots], not {heads.dtype} {tuple(heads.shape)}"
        )


def element_class(dtype: torch.dtype) -> ElementClass:
    return "float" if dtype == torch.float32 else "half"


def addressable(tensor: Tensor) -> bool:
    """Whether a tensor descriptor can hold it: 16-byte aligned base and outer strides."""
    size = tensor.element_size()
    aligned = all(stride > 0 and stride * size % 16 == 0 for stride in outer_strides(tensor))
    return aligned and tensor.data_ptr() % 16 == 0


def outer_strides(tensor: Tensor) -> list[int]:
    """Strides of the first three dimensions; a dimension of one has none that matters."""
    return [
        stride if length > 1 else 16 * tensor.shape[3]
        for length, stride in zip(tensor.shape[:3], tensor.stride()[:3], strict=True)
    ]


def descriptor_or_pointer(tensor: Tensor, config: KernelConfig) -> Tensor | TensorDescriptor:
    """K or V [B, Hkv, N, D] as the kernel takes it."""
    if not config.descriptors:
        return tensor
    block = [1, 1, config.block_n, padded_head_dim(tensor.shape[3])]
    return TensorDescriptor(tensor, list(tensor.shape), [*outer_strides(tensor), 1], block)


def strides(name: str, tensor: Tensor) -> dict[str, int]:
    return {f"stride_{name}{axis}": tensor.stride(i) for i, axis in enumerate("bhn")}


def tile_constants(q: Tensor, grid: BlockGrid, config: KernelConfig) -> dict[str, Any]:
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
