"""The mask function of an attached model: it says what a layer attends to, and keeps no state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardCall:
    """The lengths of one forward: the last `q_len` of `kv_len` positions, from `q_offset` on."""

    q_len: int
    kv_len: int
    q_offset: int


@dataclass(frozen=True, kw_only=True)
class LayerMask:
    """What one kind of layer attends to in one forward; transformers carries it as the mask.

    kv_len: number of keys the layer holds, which start at position kv_offset.
    window: reach of a sliding (or chunked) layer in tokens, or None for full attention.
    padded: the 2D attention mask masks a key. plain: nothing but causality and the window.
    make_native: builds the mask that transformers' SDPA function would have got (see `native`).
    """

    q_len: int
    kv_len: int
    q_offset: int
    kv_offset: int
    window: int | None
    padded: bool
    plain: bool
    make_native: Callable[[], Tensor | None] = field(repr=False)

    @property
    def call(self) -> ForwardCall:
        return ForwardCall(
            q_len=self.q_len, kv_len=self.q_offset + self.q_len, q_offset=self.q_offset
        )

    @property
    def is_full(self) -> bool:
        """No key is out of reach; so too where the window holds the whole sequence."""
        return self.window is None or self.window >= self.q_offset + self.q_len

    @cached_property
    def native(self) -> Tensor | None:
        """The mask for SDPA, made once a forward however many layers stay native."""
        return self.make_native()

    # For a static cache `generate` makes the masks ahead, asks for these two, and passes them in.
    ndim = 4

    def contiguous(self) -> LayerMask:
        return self


def sp_mask(
    *,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: Callable | None = None,
    attention_mask: Tensor | LayerMask | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    **options: Any,
) -> LayerMask:
    """transformers' mask function: what the layers of one type attend to. Stateless."""
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    if isinstance(attention_mask, LayerMask):  # made ahead by `generate`
        return attention_mask
    arguments = {
        **options,
        "q_length": q_length,
        "kv_length": kv_length,
        "q_offset": q_offset,
        "kv_offset": kv_offset,
        "mask_function": causal_mask_function if mask_function is None else mask_function,
        "attention_mask": attention_mask,
        "local_size": local_size,
        "allow_is_causal_skip": allow_is_causal_skip,
    }
    first, last = int(kv_offset), int(kv_offset) + kv_length
    is_causal = arguments["mask_function"] is causal_mask_function
    return LayerMask(
        q_len=q_length,
        kv_len=kv_length,
        q_offset=int(q_offset),
        kv_offset=first,
        window=local_size,
        padded=_masks_a_key(attention_mask, first, last),
        # Whatever else a model lays over the causal mask switches this skip off.
        plain=allow_is_causal_skip and (is_causal or local_size is not None),
        make_native=lambda: sdpa_mask(**arguments),
    )


def _masks_a_key(attention_mask: Tensor | None, first: int, last: int) -> bool:
    """Whether a 2D attention mask hides one of the keys at positions [first, last)."""
    if attention_mask is None:
        return False
    seen = attention_mask[:, first:last]
    return seen.shape[-1] < last - first or not bool(torch.all(seen != 0))
