"""Shorthand for decisions that hold for every head of a layer alike."""

from __future__ import annotations

import torch
from torch import Tensor

from sp_runtime.patterns.base import Branch, Decision, LayerInputs


def uniform_decision(inputs: LayerInputs, mask: Tensor, *, branch: Branch, cost: float) -> Decision:
    """Every head takes `mask` (bool, expandable to [B, H, R, C]) on one branch at one cost."""
    shape, device, full = (inputs.batch, inputs.num_heads), inputs.q.device, inputs.constants.full
    return Decision(
        mask=mask.expand(*shape, *mask.shape[-2:]),
        dense=full(shape, branch is Branch.DENSE, torch.bool, device),
        branch=full(shape, int(branch), torch.uint8, device),
        mass_heads=None,
        cost=full(shape, cost, torch.float32, device),
    )
