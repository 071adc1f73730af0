"""Small pictures of block matrices: the causal blocks of a prompt binned into few cells.

Legend: T causal blocks of R block rows in row-major lower-triangular order; n = min(R, 32) cells
along a side, S = n(n + 1) / 2 cells on and under the diagonal, in the same order.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_SIDE = 32
_LEVELS = 255


def side_of(num_rows: int) -> int:
    """n: cells along a side for R block rows."""
    return min(num_rows, MAX_SIDE)


def num_cells(num_rows: int) -> int:
    """S: cells on and under the diagonal."""
    side = side_of(num_rows)
    return side * (side + 1) // 2


def cell_of_blocks(num_rows: int) -> NDArray[np.int64]:
    """int64 [T]: the cell that each causal block falls into."""
    rows, cols = np.tril_indices(num_rows)
    side = side_of(num_rows)
    i, j = rows * side // num_rows, cols * side // num_rows
    cells: NDArray[np.int64] = (i * (i + 1) // 2 + j).astype(np.int64)
    return cells


def mass_thumbnail(flat_mass: Tensor, num_rows: int) -> Tensor:
    """uint8 [H, S]: 255 times the square root of each cell's mass, so that small ones are seen.

    flat_mass: float32 [H, T], mass of each block over R, as it enters means over rows. A cell's
    mass is the mean over its queries of their attention to its keys: a row of cells sums to 1.
    """
    cells = torch.from_numpy(cell_of_blocks(num_rows)).to(flat_mass.device)
    # float64: sums of atomic additions in any order round to the same eighth bit.
    sums = flat_mass.new_zeros(len(flat_mass), num_cells(num_rows), dtype=torch.float64)
    for head, mass in enumerate(flat_mass):
        sums[head].index_add_(0, cells, mass.double())
    side = side_of(num_rows)
    i = torch.from_numpy(np.tril_indices(side)[0])
    rows = torch.bincount(torch.arange(num_rows) * side // num_rows, minlength=side)
    share = sums * (num_rows / rows[i].to(sums.device))
    return (share.clamp(0, 1).sqrt() * _LEVELS).round().to(torch.uint8)


def as_squares(cells: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """uint8 [H, n, n] of uint8 [H, S], with zeros above the diagonal."""
    side = (int((8 * cells.shape[1] + 1) ** 0.5) - 1) // 2
    squares = np.zeros((len(cells), side, side), dtype=np.uint8)
    rows, cols = np.tril_indices(side)
    squares[:, rows, cols] = cells
    return squares
