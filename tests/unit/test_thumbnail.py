"""The small pictures of block matrices against their definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp_profile.thumbnail import (
    MAX_SIDE,
    as_squares,
    cell_of_blocks,
    mass_thumbnail,
    num_cells,
    side_of,
)


def random_mass(num_rows: int, seed: int) -> np.ndarray:
    """Block mass of one head, float64 [R, R]: rows sum to 1, nothing above the diagonal."""
    mass = np.tril(np.random.default_rng(seed).random((num_rows, num_rows)) ** 6)
    return mass / mass.sum(1, keepdims=True)


def picture(mass: np.ndarray) -> np.ndarray:
    rows = len(mass)
    flat = torch.from_numpy((mass / rows)[np.tril_indices(rows)]).float()[None]
    return as_squares(mass_thumbnail(flat, rows).numpy())[0]


@given(st.integers(1, 150), st.integers(0, 1000))
def test_a_cell_is_the_mean_over_its_rows_of_their_mass(num_rows: int, seed: int) -> None:
    mass = random_mass(num_rows, seed)
    side = min(num_rows, MAX_SIDE)
    expected = np.zeros((side, side))
    for i in range(side):
        rows = [r for r in range(num_rows) if r * side // num_rows == i]
        for j in range(side):
            columns = [c for c in range(num_rows) if c * side // num_rows == j]
            expected[i, j] = mass[np.ix_(rows, columns)].sum() / len(rows)
    found = picture(mass)
    assert found.shape == (side_of(num_rows),) * 2
    np.testing.assert_allclose(found / 255, np.sqrt(expected), atol=0.6 / 255)
    assert (found[np.triu_indices(side, 1)] == 0).all()


@given(st.integers(1, 300))
def test_every_block_falls_into_a_cell_and_every_cell_holds_one(num_rows: int) -> None:
    cells = cell_of_blocks(num_rows)
    assert len(cells) == num_rows * (num_rows + 1) // 2
    assert set(cells.tolist()) == set(range(num_cells(num_rows)))


def test_nothing_is_binned_up_to_the_size_of_the_picture() -> None:
    mass = random_mass(MAX_SIDE, 3)
    assert picture(mass) == pytest.approx(np.rint(255 * np.sqrt(mass)), abs=1)
