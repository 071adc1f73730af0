"""How block mass is cut into programs on Hopper; on the CPU."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.tuning import HOPPER_MASS, HopperMassConfig, candidates, pinned

pytest.importorskip("triton")

from sp_runtime.kernels.hopper_launch import mass_steps


@given(q_len=st.integers(1, 9000), extra=st.integers(0, 9000))
def test_steps_are_the_blocks_of_the_later_row_of_each_pair(q_len, extra):
    grid = BlockGrid(q_len=q_len, kv_len=q_len + extra, block_size=128)
    blocks = range(grid.first_row + 1, grid.num_cols + 1)
    assert mass_steps(grid) == sum(blocks[1::2]) + (blocks[-1] if len(blocks) % 2 else 0)


@given(steps=st.integers(1, 10**7), multiprocessors=st.integers(1, 200))
@settings(max_examples=200)
def test_programs_share_the_steps_evenly_within_their_bounds(steps, multiprocessors):
    config = HopperMassConfig(stages=3, q_slots=2)
    length = config.length(steps, multiprocessors)
    assert config.min_steps <= length <= config.max_steps
    programs = -(-steps // length)
    if length > config.min_steps:  # whole rounds over the multiprocessors, the last one short
        rounds = -(-programs // multiprocessors)
        assert programs * length - steps < rounds * multiprocessors + length


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("operation", ["hopper", "hopper_mass", "attention", "mass", "estimate"])
def test_candidates_begin_with_the_pinned_configuration(operation, head_dim):
    found = candidates(operation, (9, 0), head_dim, 128, "half")
    assert found[0] == pinned(operation, (9, 0), head_dim, 128, "half")
    assert len(set(found)) == len(found) > 1


def test_mass_rings_fit_the_shared_memory():
    for head_dim in HOPPER_MASS:
        for config in candidates("hopper_mass", (9, 0), head_dim, 128, "half"):
            rows = config.q_slots * 256 + config.stages * 128
            assert rows * head_dim * 2 <= 232_448 - 1024
