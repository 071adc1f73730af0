"""What a kernel backend provides: one protocol for the torch reference and the Triton backend.

Shapes: q [B, Hq, Nq, D]; k, v [B, Hkv, Nk, D] with Hq a multiple of Hkv (query head h reads KV
head h // (Hq // Hkv)); any strides with a contiguous last dimension; fp16, bf16 or fp32.
N = Nk = kv_len.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from sp_runtime.block_index import BlockGrid, BlockIndex


@dataclass(frozen=True, kw_only=True)
class LastBlockEstimate:
    """Attention of the last min(block_size, Nq) queries, exact over all keys (float32).

    vertical: [B, Hq, N], the mean over these queries of the attention on key j; sums to 1.
    slash:    [B, Hq, N], slash[o] = (1 / #queries) * sum of the attention at key distance
              i - j = o; sums to 1.
    """

    vertical: Tensor
    slash: Tensor


class Kernels(Protocol):
    """One implementation of the four device operations and of the index builder.

    `scale` multiplies q k^T before the softmax. No operation synchronises with the host on CUDA.
    """

    name: str

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Block-sparse causal attention over the blocks of `index`, and only those.

        Returns the output [B, Hq, Nq, D] in q's dtype (memory laid out as [B, Nq, Hq, D]) and the
        natural-log row log-sum-exp [B, Hq, Nq] in float32.
        """
        ...

    def block_mass(
        self, q: Tensor, k: Tensor, lse: Tensor, heads: Tensor, grid: BlockGrid, *, scale: float
    ) -> Tensor:
        """Exact block attention mass of some heads, given the *dense* row log-sum-exp.

        heads: int64 [B, S], the query head of each slot, or -1 for an empty slot.
        lse: float32 [B, Hq, Nq]. Returns float32 [B, S, R, C]: the mean over the queries of block
        row r of their softmax mass on key block c; every row of a used slot sums to 1, an empty
        slot is 0, a future block is 0.
        """
        ...

    def sampled_mass(
        self, q: Tensor, k: Tensor, heads: Tensor, grid: BlockGrid, *, stride: int, scale: float
    ) -> Tensor:
        """Block mass from every `stride`-th query of each block row, softmax over all keys.

        The sampled queries are those whose distance to the end of their block row is a multiple of
        `stride`, so that the last query of every row is always one of them. heads as in
        `block_mass`. Returns float32 [B, S, R, C].
        """
        ...

    def last_block(
        self, q: Tensor, k: Tensor, grid: BlockGrid, *, scale: float
    ) -> LastBlockEstimate:
        """The last-block estimate of every head."""
        ...

    def build_index(self, mask: Tensor, grid: BlockGrid, dense: Tensor | None) -> BlockIndex:
        """`BlockIndex.from_mask` on the device.

        mask: bool [B, Hq, R, C]. dense: bool [B, Hq], [B, Hq, R] or None.
        """
        ...
