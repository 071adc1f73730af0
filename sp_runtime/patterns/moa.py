"""MoA: a local window of its own for every head, which grows with the prompt.

Source: MoA, Mixture of Sparse Attention (arXiv 2406.14909). Parameters: per head alpha and beta of
the profile, chosen offline under a mean-density budget with a sink of 64 tokens; blocks of 64.

Where this differs: the block mask only, to our own definition. A head keeps the sink and the last
alpha + beta * N tokens, N being the keys at hand: a chunk of a prompt sees the N of its own end, so
chunks together may keep less than the prompt in one piece. The offline choice is described in
`sp_profile.moa`. Sequences beyond the trained length are refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.decision import uniform_decision
from sp_runtime.patterns.head_tables import HeadTables, LayerWindows
from sp_runtime.patterns.streaming import sink_window_mask

if TYPE_CHECKING:
    from sp_runtime.profile import HeadWindow


@dataclass(frozen=True, kw_only=True)
class MoaPattern:
    """Every head keeps `sink` first tokens and its window, both of the profile."""

    sink: int
    tables: HeadTables[HeadWindow, LayerWindows]

    def decide(self, inputs: LayerInputs) -> Decision:
        windows = self.tables.layer(inputs).tokens(inputs.grid.kv_len)
        sinks = windows.new_full(windows.shape, self.sink)
        mask = sink_window_mask(inputs.grid, sinks, windows)
        return uniform_decision(inputs, mask, branch=Branch.MOA, cost=0.0)

    def remember(self, inputs: LayerInputs, decision: Decision, mass: Tensor | None) -> None:
        """Nothing passes from layer to layer."""
