"""Masks recorded by a calibration, laid out for the heads and the length of a measurement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sp_profile.artefact import read_masks
from sp_profile.bench.masks import MaskCase, stretch
from sp_profile.tables import MaskRow
from sp_runtime.block_index import BlockGrid, normalise_mask
from sp_runtime.errors import UsageError
from sp_runtime.profile import load_profile
from sp_runtime.profile_source import find_profile


def recorded_case(folder: Path, grid: BlockGrid, *, heads: int, device: torch.device) -> MaskCase:
    """The masks of the longest prompt of a profile, for `heads` heads on `grid`.

    Whole layers are taken, evenly spaced over the model, so that heads of one layer stay
    neighbours; see `stretch` for other lengths. The diagonal is on as in every mask that runs.
    Raises UsageError where the block sizes differ, or the profile holds no masks.
    """
    folder = find_profile(folder, tables=True).parent
    profile = load_profile(folder)
    size = profile.calibration.block_size
    if size != grid.block_size:
        raise UsageError(
            f"{folder}: masks were recorded at block size {size}, not {grid.block_size}",
            hint=f"pass --block-size {size}",
        )
    rows = max(read_masks(folder, profile), key=lambda group: group[0].tokens)
    layers = sorted({row.layer for row in rows})
    per_layer = profile.model.num_heads
    needed = -(-heads // per_layer)
    picked = [layers[number * len(layers) // needed % len(layers)] for number in range(needed)]
    chosen = [row for layer in picked for row in rows if row.layer == layer][:heads]
    if len(chosen) < heads:
        raise UsageError(f"{folder}: holds {len(rows)} heads, {heads} are needed")
    mask = torch.stack([unpack(row, size) for row in chosen])
    mask = normalise_mask(stretch(mask, grid.num_cols).to(device), grid)[None]
    density = int(mask.sum()) / heads / grid.num_causal_blocks
    return MaskCase(
        name="recorded",
        mask=mask,
        dense=torch.zeros(1, heads, dtype=torch.bool, device=device),
        wanted=density,
    )


def unpack(row: MaskRow, block_size: int) -> Tensor:
    """bool [C, C] of one recorded head, the lower triangle filled."""
    cols = -(-row.tokens // block_size)
    bits = np.unpackbits(np.frombuffer(row.bits, np.uint8), count=row.blocks).astype(bool)
    mask = np.zeros((cols, cols), dtype=bool)
    mask[np.tril_indices(cols)] = bits
    return torch.from_numpy(mask)
