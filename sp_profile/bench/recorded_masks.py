"""Masks recorded by a calibration, laid out for the heads and the length of a measurement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
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


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordedMasks:
    """The masks of the longest prompt of a profile: one tuple of heads for every recorded layer.

    Whole layers are taken, so that heads of one layer stay neighbours; see `stretch` for other
    lengths. The diagonal is on as in every mask that runs.
    """

    folder: Path
    block_size: int
    layers: tuple[tuple[MaskRow, ...], ...]

    def case(self, grid: BlockGrid, *, heads: int, device: torch.device) -> MaskCase:
        """For one layer that stands for the model: layers evenly spaced over it.

        Raises UsageError where the profile holds fewer heads, or other blocks.
        """
        count, needed = len(self.layers), self._needed(heads)
        picked = [number * count // needed for number in range(needed)]
        mask = self._lay_out(picked, grid, heads, device)
        density = int(mask.sum()) / heads / grid.num_causal_blocks
        return MaskCase(
            name="recorded",
            mask=mask,
            dense=torch.zeros(1, heads, dtype=torch.bool, device=device),
            wanted=density,
        )

    def of_layer(
        self, number: int, total: int, grid: BlockGrid, *, heads: int, device: torch.device
    ) -> Tensor:
        """bool [1, H, R, C] for one layer of `total`: recorded layers from the same depth on.

        Raises UsageError as `case`.
        """
        count, needed = len(self.layers), self._needed(heads)
        first = min(number * count // total, count - needed)
        return self._lay_out(range(first, first + needed), grid, heads, device)

    def _needed(self, heads: int) -> int:
        """How many recorded layers have so many heads."""
        needed = -(-heads // len(self.layers[0]))
        if needed > len(self.layers):
            held = sum(map(len, self.layers))
            raise UsageError(f"{self.folder}: holds {held} heads, {heads} are needed")
        return needed

    def _lay_out(
        self, layers: Sequence[int], grid: BlockGrid, heads: int, device: torch.device
    ) -> Tensor:
        if grid.block_size != self.block_size:
            raise UsageError(
                f"{self.folder}: masks were recorded at block size {self.block_size}, "
                f"not {grid.block_size}",
                hint=f"pass --block-size {self.block_size}",
            )
        rows = [row for layer in layers for row in self.layers[layer]][:heads]
        mask = torch.stack([unpack(row, self.block_size) for row in rows]).to(device)
        return normalise_mask(stretch(mask, grid.num_cols), grid)[None]


def read_recorded(folder: Path) -> RecordedMasks:
    """Of a profile's folder. Raises UsageError where it holds no masks."""
    folder = find_profile(folder, tables=True).parent
    profile = load_profile(folder)
    rows = max(read_masks(folder, profile), key=lambda group: group[0].tokens)
    ordered = sorted(rows, key=lambda row: row.layer)
    return RecordedMasks(
        folder=folder,
        block_size=profile.calibration.block_size,
        layers=tuple(tuple(heads) for _, heads in groupby(ordered, key=lambda row: row.layer)),
    )


def unpack(row: MaskRow, block_size: int) -> Tensor:
    """bool [C, C] of one recorded head, the lower triangle filled."""
    cols = -(-row.tokens // block_size)
    bits = np.unpackbits(np.frombuffer(row.bits, np.uint8), count=row.blocks).astype(bool)
    mask = np.zeros((cols, cols), dtype=bool)
    mask[np.tril_indices(cols)] = bits
    return torch.from_numpy(mask)
