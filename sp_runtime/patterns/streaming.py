"""Streaming: attention sink and local window.

Source: StreamingLLM (arXiv 2309.17453), as a block pattern of prefill. Parameters: sink and window
in tokens; the paper keeps 4 first tokens, FlexPrefill's comparison 1,000 and a window of 8,000.

Where this differs: whole blocks, and the positions of the model; the paper counts positions inside
its cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.decision import uniform_decision


def streaming_mask(
    grid: BlockGrid, sink: int, window: int, device: torch.device | str | None = None
) -> Tensor:
    """bool [R, C]: the blocks that hold the first `sink` tokens or a key of the local window.

    The window of a query holds `window` keys, the query's own position the last of them. Whole
    block rows count, so that a prompt in chunks takes the same blocks as in one piece. Block 0
    and the diagonal are always on.
    """
    return _sink_window(grid, max(1, -(-sink // grid.block_size)), reach(grid, window), device)


def streaming_masks(grid: BlockGrid, sink: int, reaches: Tensor) -> Tensor:
    """bool [W, R, C]: `streaming_mask` at the `reach` of several windows, int64 [W]."""
    first = max(1, -(-sink // grid.block_size))
    return _sink_window(grid, first, reaches[:, None, None], reaches.device)


def sink_window_mask(grid: BlockGrid, sink: Tensor, window: Tensor) -> Tensor:
    """bool [S, R, C]: `streaming_mask` of heads with sizes of their own, int64 [S]."""
    first = ((sink + grid.block_size - 1) // grid.block_size).clamp(min=1)
    near = (window + grid.block_size - 2) // grid.block_size
    return _sink_window(grid, first[:, None, None], near[:, None, None], sink.device)


def reach(grid: BlockGrid, window: int) -> int:
    """How many block diagonals below the main one hold a key of a window, in tokens."""
    return (window + grid.block_size - 2) // grid.block_size


def _sink_window(
    grid: BlockGrid,
    first: int | Tensor,
    near: int | Tensor,
    device: torch.device | str | None,
) -> Tensor:
    """The `first` key blocks, and those at most `near` blocks before the diagonal."""
    cols = torch.arange(grid.num_cols, device=device)
    before = torch.arange(grid.first_row, grid.num_cols, device=device)[:, None] - cols
    return ((before <= near) | (cols < first)) & (before >= 0)


@dataclass(frozen=True, kw_only=True)
class StreamingPattern:
    """Every head keeps `point.sink` first tokens and a window of `point.window` tokens."""

    point: OperatingPoint

    def decide(self, inputs: LayerInputs) -> Decision:
        mask = streaming_mask(inputs.grid, self.point.sink, self.point.window, inputs.q.device)
        return uniform_decision(inputs, mask, branch=Branch.STREAMING, cost=0.0)

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        """Nothing passes from layer to layer."""
