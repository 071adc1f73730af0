"""Masks packed to bits on their device, in the bit order of `numpy.packbits`."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad


def pack_bits(mask: Tensor) -> Tensor:
    """bool [..., T] -> uint8 [..., ceil(T / 8)], the first entry in the highest bit."""
    padded = pad(mask.to(torch.uint8), (0, -mask.shape[-1] % 8)).unflatten(-1, (-1, 8))
    return (padded << _shifts(mask.device)).sum(-1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, size: int) -> Tensor:
    """uint8 [..., ceil(T / 8)] -> bool [..., T] with T = size."""
    bits = (packed.unsqueeze(-1) >> _shifts(packed.device)) & 1
    return bits.flatten(-2)[..., :size].bool()


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
