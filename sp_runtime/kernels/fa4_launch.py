"""The call of FlashAttention-4 (package flash-attn-4) over the blocks of an index.

Its interface is that of flash-attn-4 4.0.0b36: `flash_attn_func` with a mask_mod and
`BlockSparseTensorsTorch`. Importing this module imports neither that package nor Triton.
"""

from __future__ import annotations

import importlib.util
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from sp_runtime.block_index_export import FA4BlockTensors
from sp_runtime.errors import UnsupportedError

BLOCK = 128
MAX_HEAD_DIM = 128  # wider heads take key tiles that are no 128 keys long
HEAD_DIM_STEP = 8  # 16 bytes
DTYPES = (torch.float16, torch.bfloat16)
HINT = "pip install 'sparse-prefill[fa4]' on a machine with a Hopper GPU, or use the triton kernels"


def fa4_obstacle(device: torch.device) -> str | None:
    """Why FlashAttention-4 cannot run block-sparse on this device, or None."""
    if device.type != "cuda":
        return "needs a CUDA GPU"
    major, minor = torch.cuda.get_device_capability(device)
    if major != 9:
        # From 10.0 on it joins two tiles of queries, so that its blocks hold 256 of them.
        return f"blocks of 128 need compute capability 9.x, not {major}.{minor}"
    return missing_package()


def missing_package() -> str | None:
    """What to say where flash-attn-4 is not installed, or None."""
    try:
        found = importlib.util.find_spec("flash_attn.cute")
    except ModuleNotFoundError:
        found = None
    return None if found is not None else "the package flash-attn-4 is not installed"


def shape_obstacle(head_dim: int, block_size: int, dtype: torch.dtype) -> str | None:
    """Why it cannot run calls of this shape, or None."""
    if block_size != BLOCK:
        return f"FlashAttention-4 takes blocks of {BLOCK} tokens, not {block_size}"
    if dtype not in DTYPES:
        return f"FlashAttention-4 takes float16 and bfloat16, not {dtype}"
    if head_dim > MAX_HEAD_DIM or head_dim % HEAD_DIM_STEP:
        known = f"multiples of {HEAD_DIM_STEP} up to {MAX_HEAD_DIM}"
        return f"FlashAttention-4 takes head dimensions that are {known}, not {head_dim}"
    return None


def load_fa4() -> tuple[Any, Any, Any]:
    """`flash_attn_func`, the type of its block lists, and the mask of partial blocks.

    Raises UnsupportedError where the package, or one that it needs, cannot be imported.
    """
    try:
        from flash_attn.cute import flash_attn_func
        from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

        from sp_runtime.kernels.fa4_mask import causal_mask
    except ImportError as error:
        raise UnsupportedError(
            f"FlashAttention-4 cannot be imported: {error}", hint=HINT
        ) from error
    return flash_attn_func, BlockSparseTensorsTorch, causal_mask


def fa4_attention(
    q: Tensor, k: Tensor, v: Tensor, lists: FA4BlockTensors, *, scale: float, with_lse: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Output [B, Hq, Nq, D] over memory [B, Nq, Hq, D], and the natural row log-sum-exp float32
    [B, Hq, Nq] where wanted.

    q: [B, Hq, Nq, D]; k, v: [B, Hkv, Nk, D]; lists: of `to_fa4_tensors`. The first call of a
    (head_dim, dtype, group) class compiles. causal=True would mask every block, so the token mask
    of the partial ones is a mask_mod.
    """
    function, block_lists, mask = load_fa4()
    with torch.no_grad():  # its backward would need lists of its own
        out, lse = function(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            softmax_scale=scale,
            mask_mod=mask,
            # The fields of both have the same names.
            block_sparse_tensors=block_lists(
                **{f.name: getattr(lists, f.name) for f in fields(lists)}
            ),
            return_lse=with_lse,
        )
    return out.transpose(1, 2), lse
