"""What every method keeps to: causality, forced blocks, grouped heads, chunks, no waiting."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.base import LastBlockEstimate
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.operating_point import METHODS
from sp_runtime.patterns.masks import forced_blocks
from sp_runtime.patterns.registry import make_pattern_factory


def _beside(name: str):
    """A helper module of this folder: test modules are not a package."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


cases = _beside("method_cases")
CASES = cases.CASES


def test_every_method_is_here() -> None:
    assert {*CASES, "dense", "share"} == {*METHODS}


@pytest.fixture(scope="module")
def profile(examples):
    """Block size 64; head patterns of all kinds."""
    made = examples.make_profile()
    return dataclasses.replace(made, head_patterns=examples.head_patterns(made.model))


@pytest.mark.parametrize("method", CASES)
@settings(max_examples=12)
@given(grid=cases.grids(), seed=st.integers(0, 2**31), layer=st.sampled_from([0, 2, 3]))
def test_masks_are_causal_and_hold_the_forced_blocks(method, profile, grid, seed, layer) -> None:
    q, k = cases.whole_numbers(grid, seed)
    decision = CASES[method].decide(cases.inputs_of(q, k, grid, layer), profile)
    shape = (2, 4, grid.num_rows, grid.num_cols)
    assert decision.mask.shape == shape
    assert decision.mask.dtype == torch.bool
    assert not (decision.mask & ~grid.causal_mask()).any()
    assert decision.mask[:, :, forced_blocks(grid)].all()
    assert not decision.dense.any()
    assert decision.mass_heads is None
    assert decision.branch.shape == decision.cost.shape == shape[:2]
    assert decision.branch.dtype == torch.uint8
    assert (decision.cost >= 0).all()
    assert torch.isfinite(decision.cost).all()


@pytest.mark.parametrize("method", CASES)
@settings(max_examples=6)
@given(grid=cases.grids(longest=400), seed=st.integers(0, 2**31))
def test_grouped_heads_are_repeated_keys_and_sequences_do_not_mix(
    method, profile, grid, seed
) -> None:
    q, k = cases.whole_numbers(grid, seed)
    grouped = CASES[method].decide(cases.inputs_of(q, k, grid), profile)
    repeated = CASES[method].decide(
        cases.inputs_of(q, k.repeat_interleave(2, dim=1), grid), profile
    )
    assert torch.equal(grouped.mask, repeated.mask)
    assert torch.equal(grouped.branch, repeated.branch)
    alone = CASES[method].decide(cases.inputs_of(q[1:], k[1:], grid), profile)
    assert torch.equal(grouped.mask[1:], alone.mask)


@pytest.mark.parametrize("method", [name for name, case in CASES.items() if case.chunks])
@settings(max_examples=15)
@given(
    blocks=st.integers(2, 9),
    ragged=st.integers(1, 64),
    cut=st.integers(1, 8),
    seed=st.integers(0, 2**31),
)
def test_aligned_chunks_take_the_blocks_of_the_whole(
    method, profile, blocks, ragged, cut, seed
) -> None:
    length, start = 64 * (blocks - 1) + ragged, 64 * min(cut, blocks - 1)
    whole = BlockGrid(q_len=length, kv_len=length, block_size=64)
    q, k = cases.whole_numbers(whole, seed)
    first = BlockGrid(q_len=start, kv_len=start, block_size=64)
    rest = BlockGrid(q_len=length - start, kv_len=length, block_size=64)
    case = CASES[method]
    parts = (
        case.decide(cases.inputs_of(q[:, :, :start], k[:, :, :start], first), profile).mask,
        case.decide(cases.inputs_of(q[:, :, start:], k, rest), profile).mask,
    )
    expected = case.decide(cases.inputs_of(q, k, whole), profile).mask
    assert torch.equal(expected[:, :, : first.num_rows, : first.num_cols], parts[0])
    assert torch.equal(expected[:, :, first.num_rows :], parts[1])


@pytest.mark.parametrize(
    ("method", "setting", "values"),
    [
        ("streaming", "window", (1, 100, 300)),
        ("lm_infinite", "sink", (0, 100, 300)),
        ("vertical_slash", "gamma", (0.3, 0.7, 1.0)),
        ("flexprefill", "gamma", (0.3, 0.7, 1.0)),
        ("infllm", "top_k", (1, 128, 300)),
        ("infllm", "window", (1, 100, 300)),
        ("xattention", "tau", (0.2, 0.6, 1.0)),
        ("sampled", "gamma", (0.3, 0.7, 1.0)),
    ],
)
@settings(max_examples=8)
@given(grid=cases.grids(), seed=st.integers(0, 2**31))
def test_more_is_never_less(method, setting, values, profile, grid, seed) -> None:
    """Not promised by hip, whose wider search is another search."""
    q, k = cases.whole_numbers(grid, seed)
    inputs = cases.inputs_of(q, k, grid)
    previous = torch.zeros(2, 4, grid.num_rows, grid.num_cols, dtype=torch.bool)
    for value in values:
        point = dataclasses.replace(CASES[method].point, **{setting: value})
        found = make_pattern_factory(point, profile)().decide(inputs).mask
        assert not (previous & ~found).any()
        previous = found


@pytest.mark.parametrize("method", CASES)
@pytest.mark.parametrize(("q_len", "kv_len"), [(300, 300), (130, 300), (1, 70)])
def test_decisions_wait_for_no_value_on_the_host(method, profile, q_len, kv_len) -> None:
    """Meta tensors have no values: anything that would wait for one raises."""

    class MetaKernels(ReferenceKernels):
        def last_block(self, q, k, grid, *, scale):
            x = torch.empty(*q.shape[:2], grid.kv_len, device="meta")
            return LastBlockEstimate(vertical=x, slash=x)

        def sampled_mass(self, q, k, heads, grid, *, stride, scale):
            return torch.empty(*heads.shape, grid.num_rows, grid.num_cols, device="meta")

    grid = BlockGrid(q_len=q_len, kv_len=kv_len, block_size=64)
    q = torch.empty(2, 4, q_len, 16, device="meta")
    k = torch.empty(2, 2, kv_len, 16, device="meta")
    inputs = dataclasses.replace(cases.inputs_of(q, k, grid), kernels=MetaKernels())
    decision = CASES[method].decide(inputs, profile)
    assert decision.mask.shape == (2, 4, grid.num_rows, grid.num_cols)
