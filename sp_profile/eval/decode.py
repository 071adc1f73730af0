"""Greedy decoding of several prompts of one length from their stacked key-value caches.

Legend: P prompts, Hkv KV heads, N prompt tokens, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from sp_runtime.errors import UnsupportedError


class _RoomyLayer(DynamicLayer):
    """A cache layer with room for the tokens to come, so that a step copies one token and not all.

    keys, values: views [P, Hkv, filled, D] of the buffers.
    """

    def __init__(self, keys: Tensor, values: Tensor, filled: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self._keys, self._values = keys, values
        self.keys, self.values = keys[:, :, :filled], values[:, :, :filled]

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        self._keys[:, :, start:end] = key_states
        self._values[:, :, start:end] = value_states
        self.keys, self.values = self._keys[:, :, :end], self._values[:, :, :end]
        return self.keys, self.values


def stack_caches(caches: Sequence[DynamicCache], room: int) -> DynamicCache:
    """One cache of P prompts from P caches of one, layer by layer; the single ones are emptied.

    All caches are of the same length. room: tokens that will be added.
    """
    first = caches[0]
    for number in range(len(first.layers)):
        first.layers[number] = _stack_layer([cache.layers[number] for cache in caches], room)
        for cache in caches[1:]:
            cache.layers[number] = None
    return first


def _stack_layer(layers: Sequence[Any], room: int) -> Any:
    first = layers[0]
    if not isinstance(getattr(first, "keys", None), Tensor):
        raise UnsupportedError(
            f"a cache layer of kind {type(first).__name__} cannot be stacked",
            hint="evaluate decoder-only models whose cache holds keys and values",
        )
    if type(first) is not DynamicLayer:
        # A sliding window keeps few tokens and counts them itself; its growth costs little.
        first.keys = torch.cat([layer.keys for layer in layers])
        first.values = torch.cat([layer.values for layer in layers])
        return first
    filled = first.keys.shape[2]
    buffers = []
    for name in ("keys", "values"):
        one = getattr(first, name)
        buffer = one.new_empty(len(layers), one.shape[1], filled + room, one.shape[3])
        for place, layer in enumerate(layers):
            buffer[place, :, :filled] = getattr(layer, name)[0]
        buffers.append(buffer)
    return _RoomyLayer(buffers[0], buffers[1], filled)


def cache_bytes(cache: DynamicCache) -> int:
    """Device memory of one cache's keys and values."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


@torch.inference_mode()
def decode_greedily(
    decoder: Callable[..., Any],
    head: Callable[[Tensor], Tensor],
    caches: Sequence[DynamicCache],
    first_tokens: Sequence[int],
    *,
    max_new_tokens: int,
    stop: frozenset[int],
) -> tuple[tuple[int, ...], ...]:
    """The new tokens of each prompt, its first one included and its stop token excluded.

    decoder: token ids [P, 1] and a cache to last hidden states; head: hidden [P, D] to logits.
    caches: one a prompt, of equal lengths; they are used up.
    """
    tokens = [[token] for token in first_tokens]
    if max_new_tokens > 1 and any(token not in stop for token in first_tokens):
        cache = stack_caches(caches, room=max_new_tokens)
        device = cache.layers[0].keys.device
        latest = torch.tensor(first_tokens, device=device)
        for _ in range(max_new_tokens - 1):
            output = decoder(input_ids=latest[:, None], past_key_values=cache, use_cache=True)
            latest = head(output.last_hidden_state[:, -1]).argmax(-1)
            for row, token in zip(tokens, latest.tolist(), strict=True):
                row.append(token)
            if all(not stop.isdisjoint(row) for row in tokens):
                break
    return tuple(_before_stop(row, stop) for row in tokens)


def _before_stop(tokens: list[int], stop: frozenset[int]) -> tuple[int, ...]:
    end = next((n for n, token in enumerate(tokens) if token in stop), len(tokens))
    return tuple(tokens[:end])
