"""Inputs and a float64 oracle, shared by the kernel scripts of this folder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One attention call; offset = kv_len - q_len."""

    q_len: int
    kv_len: int
    head_dim: int = 64
    heads: int = 2
    kv_heads: int = 1
    batch: int = 1
    block: int = 64
    dtype: str = "float32"

    @property
    def grid(self) -> BlockGrid:
        return BlockGrid(q_len=self.q_len, kv_len=self.kv_len, block_size=self.block)

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    def label(self) -> str:
        return (
            f"q{self.q_len}-kv{self.kv_len}-d{self.head_dim}-h{self.heads}x{self.kv_heads}"
            f"-b{self.batch}-block{self.block}-{self.dtype}"
        )


def inputs(shape: Shape, device: str, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v as transformers lays them out: q and v [B, N, H, D] transposed, k [B, H, N, D]."""
    gen = torch.Generator().manual_seed(seed)
    dtype = getattr(torch, shape.dtype)

    def draw(heads: int, length: int, transposed: bool) -> Tensor:
        size = (shape.batch, length, heads, shape.head_dim)
        x = torch.randn(size, generator=gen).to(dtype).to(device)
        return x.transpose(1, 2) if transposed else x.transpose(1, 2).contiguous()

    q = draw(shape.heads, shape.q_len, True)
    k = draw(shape.kv_heads, shape.kv_len, False)
    v = draw(shape.kv_heads, shape.kv_len, True)
    return q * 1.5, k, v


def layer_inputs(shape: Shape, layers: int, device: str, seed: int = 0) -> list[Tensor]:
    """q, k, v [layers, B, H, N, D]."""
    every = [inputs(shape, device, seed=seed + layer) for layer in range(layers)]
    return [torch.stack(part) for part in zip(*every, strict=True)]


def random_mask(shape: Shape, density: float, device: str, seed: int = 1) -> Tensor:
    """bool [B, H, R, C], uniformly random, first column on; future blocks left in on purpose."""
    gen = torch.Generator().manual_seed(seed)
    grid = shape.grid
    size = (shape.batch, shape.heads, grid.num_rows, grid.num_cols)
    mask = torch.rand(size, generator=gen) < density
    mask[..., 0] = True
    return mask.to(device)


def token_mask(block_mask: Tensor, grid: BlockGrid) -> Tensor:
    """bool [B, H, R, C] -> bool [B, H, Nq, Nk], causal, the diagonal block always on."""
    device = block_mask.device
    pos = torch.arange(grid.q_offset, grid.kv_len, device=device)
    key = torch.arange(grid.kv_len, device=device)
    row, col = pos // grid.block_size, key // grid.block_size
    on = block_mask[..., row - grid.first_row, :][..., col]
    on = on | (row[:, None] == col[None, :])
    return on & (pos[:, None] >= key[None, :])


def scores64(q: Tensor, k: Tensor, mask: Tensor, scale: float) -> Tensor:
    """float64 [B, H, Nq, Nk], -inf where masked."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    s = q.double() @ k.double().transpose(-1, -2) * scale
    return s.masked_fill(~mask, float("-inf"))


def attention64(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Output [B, H, Nq, D] and log-sum-exp [B, H, Nq], float64."""
    s = scores64(q, k, mask, scale)
    v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    return s.softmax(-1) @ v.double(), s.logsumexp(-1)


def eager(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float) -> Tensor:
    """The same in the inputs' own dtype, every step rounded: the yardstick of the error bound."""
    k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
    s = (q @ k.transpose(-1, -2) * scale).masked_fill(~mask, float("-inf"))
    return s.softmax(-1, dtype=torch.float32).to(q.dtype) @ v


def mass64(q: Tensor, k: Tensor, grid: BlockGrid, scale: float, stride: int = 1) -> Tensor:
    """Block mass [B, H, R, C] in float64; with a stride, of the sampled queries alone."""
    every = torch.ones(1, 1, grid.num_rows, grid.num_cols, dtype=torch.bool, device=q.device)
    p = scores64(q, k, token_mask(every, grid), scale).softmax(-1)
    col = torch.arange(grid.kv_len, device=q.device) // grid.block_size
    onehot = torch.nn.functional.one_hot(col, grid.num_cols).double()
    p = p @ onehot
    pos = torch.arange(grid.q_offset, grid.kv_len, device=q.device)
    row = pos // grid.block_size
    end = ((row + 1) * grid.block_size).clamp(max=grid.kv_len) - 1
    taken = ((end - pos) % stride == 0).double()
    pick = (
        torch.nn.functional.one_hot(row - grid.first_row, grid.num_rows).double() * taken[:, None]
    )
    return (pick / pick.sum(0, keepdim=True)).T @ p


def last_block64(q: Tensor, k: Tensor, grid: BlockGrid, scale: float) -> tuple[Tensor, Tensor]:
    """vertical and slash [B, H, N] in float64 by their definition."""
    every = torch.ones(1, 1, grid.num_rows, grid.num_cols, dtype=torch.bool, device=q.device)
    p = scores64(q, k, token_mask(every, grid), scale).softmax(-1)
    count = min(grid.block_size, grid.q_len)
    p = p[:, :, -count:]
    pos = torch.arange(grid.kv_len - count, grid.kv_len, device=q.device)
    distance = pos[:, None] - torch.arange(grid.kv_len, device=q.device)[None, :]
    slash = torch.zeros(*p.shape[:2], grid.kv_len, dtype=torch.float64, device=q.device)
    flat = distance.clamp(min=0).flatten().expand(*p.shape[:2], -1)
    slash.scatter_add_(2, flat, p.flatten(2))
    return p.mean(2), slash / count
