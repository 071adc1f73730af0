"""The one protocol of all sparse-prefill methods, and the types that pass through it.

Legend: B batch, H query heads, R query block rows, C key block columns, S mass slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.base import Kernels
from sp_runtime.selection import take_heads


class Branch(IntEnum):
    """Which way a head took in one layer of one prefill; the values are stable."""

    DENSE = 0
    PIVOT = 1
    SHARED = 2
    VERTICAL_SLASH = 3
    QUERY_AWARE = 4
    STREAMING = 5
    SAMPLED = 6
    LM_INFINITE = 7
    A_SHAPE = 8
    BLOCK_SPARSE = 9
    INFLLM = 10
    HIP = 11
    MOA = 12
    XATTENTION = 13
    WIDENED = 14


class Constants:
    """Tensors that no input changes, made once a forward; nobody writes to them."""

    def __init__(self) -> None:
        self._full: dict[tuple[tuple[int, ...], float, torch.dtype, torch.device], Tensor] = {}
        self._heads: dict[tuple[int, torch.device], Tensor] = {}

    def full(
        self, shape: tuple[int, ...], value: float, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        key = (shape, value, dtype, device)
        if key not in self._full:
            self._full[key] = torch.full(shape, value, dtype=dtype, device=device)
        return self._full[key]

    def every_head(self, heads: int, device: torch.device) -> Tensor:
        """int64 [H], all of them."""
        key = (heads, device)
        if key not in self._heads:
            self._heads[key] = torch.arange(heads, device=device)
        return self._heads[key]


@dataclass(frozen=True, kw_only=True)
class LayerInputs:
    """Queries and keys of one layer's prefill, after rotary embedding.

    q [B, H, Nq, D]; k [B, Hkv, Nk, D]; scale multiplies q k^T. constants: of the forward.
    """

    layer: int
    q: Tensor
    k: Tensor
    grid: BlockGrid
    scale: float
    kernels: Kernels
    constants: Constants = field(default_factory=Constants, repr=False, compare=False)

    @property
    def batch(self) -> int:
        return self.q.shape[0]

    @property
    def num_heads(self) -> int:
        return self.q.shape[1]


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What every head of one layer computes.

    mask:   bool [B, H, R, C], the blocks to compute (ignored where `dense`); or with `slots` the
            masks [B, K, R, C] that these number, valid until the next `decide`.
    dense:  bool [B, H], heads that take every causal block.
    branch: uint8 [B, H], values of `Branch`.
    mass_heads: int64 [B, S] or None, the heads whose exact block mass `remember` needs (-1: none);
            they must be dense.
    cost:   float32 [B, H], cost of the estimates behind this decision, in blocks of one head.
    slots:  int64 [B, H] or None, the mask of each head.
    """

    mask: Tensor
    dense: Tensor
    branch: Tensor
    mass_heads: Tensor | None
    cost: Tensor
    slots: Tensor | None = None

    def head_masks(self) -> Tensor:
        """bool [B, H, R, C], the mask of each head."""
        return self.mask if self.slots is None else take_heads(self.mask, self.slots)


class Pattern(Protocol):
    """One method, for one sequence; every prefill chunk gets a new instance, which holds its state.

    The engine calls `decide` and then `remember` for each layer, in layer order.
    """

    def decide(self, inputs: LayerInputs) -> Decision:
        """Choose the blocks of every head of this layer; no host synchronisation."""
        ...

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        """Take into the state the exact block mass of `mass_heads`, float32 [B, S, R, C]."""
        ...
