"""How much attention mass a pattern's masks keep: exact attention, with the pattern beside it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.errors import UnsupportedError
from sp_runtime.integrations.transformers import ForwardCall
from sp_runtime.kernels.base import Kernels
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import LayerInputs, Pattern


class PatternRecallHandler:
    """An `AttentionHandler` that computes exact attention and measures a pattern on it.

    As in calibration, what a layer sees is what dense attention hands it, so that a head is judged
    by its own mask alone. Run one forward of one whole prompt, then take `recall`.
    """

    def __init__(
        self,
        make_pattern: Callable[[], Pattern],
        point: OperatingPoint,
        kernels: Kernels,
        block_size: int,
    ) -> None:
        self._make_pattern = make_pattern
        self._point = point
        self._kernels = kernels
        self._block_size = block_size
        self._grid: BlockGrid | None = None
        self._pattern: Pattern | None = None
        self._layers: dict[int, Tensor] = {}

    def begin(self, call: ForwardCall) -> None:
        """Start over; refuses chunks, since whole prompts are promised."""
        if call.q_offset != 0:
            raise UnsupportedError("recall is measured on whole prompts, not on chunks")
        size = self._block_size
        self._grid = BlockGrid(q_len=call.q_len, kv_len=call.kv_len, block_size=size)
        self._pattern = self._make_pattern()
        self._layers = {}

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Exact attention [1, H, N, D]."""
        grid, pattern, kernels = self._grid, self._pattern, self._kernels
        assert grid is not None, "begin comes first"
        assert pattern is not None
        index = BlockIndex.full(q.shape[0], q.shape[1], grid, q.device)
        output, lse = kernels.attention(q, k, v, index, scale=scale)
        if layer < self._point.dense_layers:
            self._layers[layer] = torch.ones(q.shape[1], device=q.device)
            return output
        heads = torch.arange(q.shape[1], device=q.device)[None]
        mass = kernels.block_mass(q, k, lse, heads, grid, scale=scale).float()
        inputs = LayerInputs(layer=layer, q=q, k=k, grid=grid, scale=scale, kernels=kernels)
        decision = pattern.decide(inputs)
        kept = (mass * decision.head_masks()).sum((-2, -1)) / grid.num_rows
        self._layers[layer] = torch.where(decision.dense, 1.0, kept)[0].clamp(0, 1)
        lent = None
        if decision.mass_heads is not None:
            lent = kernels.block_mass(q, k, lse, decision.mass_heads, grid, scale=scale)
        pattern.remember(inputs, decision, lent)
        return output

    def recall(self) -> dict[int, tuple[float, ...]]:
        """Of each layer, the share of its attention mass that each head's mask keeps."""
        return {layer: tuple(values.tolist()) for layer, values in self._layers.items()}
