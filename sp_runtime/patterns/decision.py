"""Shorthand for decisions that hold for every head of a layer alike."""

from __future__ import annotations

import torch
from torch import Tensor

from sp_runtime.patterns.base import Branch, Decision, LayerInputs


def uniform_decision(inputs: LayerInputs, mask: Tensor, *, branch: Branch, cost: float) -> Decision:
    """Every head takes `mask` (bool, expandable to [B, H, R, C]) on one branch at one cost."""
    shape = (inputs.batch, inputs.num_heads)
    device = inputs.q.device
    return Decision(
        mask=mask.expand(*shape, *mask.shape[-2:]),
        dense=torch.full(shape, branch is Branch.DENSE, dtype=torch.bool, device=device),
        branch=torch.full(shape, int(branch), dtype=torch.uint8, device=device),
        mass_heads=None,
        cost=torch.full(shape, cost, dtype=torch.float32, device=device),
    )
