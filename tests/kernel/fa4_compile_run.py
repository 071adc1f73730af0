"""Compiles FlashAttention-4's block-sparse kernel for Hopper as the backend calls it, on a CPU.

Prints a JSON line a call: how many kernels the package has compiled so far. Its tensors are fake,
which it takes as the order to compile and not to run.
"""

from __future__ import annotations

import json
import os

# Read by the package on import: which kernel, for which GPU, of how many multiprocessors.
os.environ |= {"FLASH_ATTENTION_ARCH": "sm_90", "FLASH_ATTENTION_NUM_SMS": "132"}
os.environ["CUTE_DSL_ARCH"] = "sm_90a"

import torch
from flash_attn.cute import interface
from torch._subclasses.fake_tensor import FakeTensorMode

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.block_index_export import FA4BlockTensors, to_fa4_tensors
from sp_runtime.kernels.fa4_launch import fa4_attention

LISTS = ("mask_block_cnt", "mask_block_idx", "full_block_cnt", "full_block_idx")
# Batch, query heads, queries, keys; two KV heads.
CALLS = ((1, 8, 1024, 1024), (2, 8, 1, 1), (1, 8, 129, 129), (3, 8, 300, 684), (1, 2, 512, 512))


def fake(*size: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(*size, dtype=dtype, device="cuda:0")


def compile_call(batch: int, heads: int, q_len: int, kv_len: int) -> None:
    grid = BlockGrid(q_len=q_len, kv_len=kv_len, block_size=128)
    real = to_fa4_tensors(BlockIndex.full(batch, heads, grid, "cpu"))
    with FakeTensorMode():
        q = fake(batch, q_len, heads, 128, dtype=torch.bfloat16).transpose(1, 2)
        k = fake(batch, 2, kv_len, 128, dtype=torch.bfloat16)
        v = fake(batch, kv_len, 2, 128, dtype=torch.bfloat16).transpose(1, 2)
        sizes = {name: getattr(real, name).shape for name in LISTS}
        lists = FA4BlockTensors(
            **{name: fake(*size, dtype=torch.int32) for name, size in sizes.items()},
            block_size=real.block_size,
        )
        out, lse = fa4_attention(q, k, v, lists, scale=0.1)
    assert lse is not None
    assert (out.shape, lse.shape) == (q.shape, q.shape[:3])
    assert out.dtype == q.dtype


def main() -> None:
    compiled = interface._flash_attn_fwd.compile_cache
    for call in CALLS:
        compile_call(*call)
        print(json.dumps({"call": call, "compiled": len(compiled.cache)}), flush=True)


if __name__ == "__main__":
    main()
