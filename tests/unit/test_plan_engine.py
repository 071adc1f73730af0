"""Rule plan in the engine: named plans, and what every plan keeps whatever it says."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from sp_runtime.block_index import BlockGrid
from sp_runtime.dense_attention import dense_attention
from sp_runtime.engine import Engine
from sp_runtime.errors import UsageError
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Branch
from sp_runtime.patterns.masks import forced_blocks
from sp_runtime.patterns.registry import make_pattern_factory
from sp_runtime.profile import NamedPlan

SCALE, BLOCK, LAYERS, LENGTH = 1.5, 64, (0, 2, 3), 600
POINT = OperatingPoint(plan="fast", min_tokens=64, min_budget=64, sink=64, local_blocks=1)
# The heads of the examples' plan `fast` whose masks are of block mass.
OF_MASS = [(0, 1), (0, 3), (2, 0), (2, 1), (3, 0)]


class Kept(ReferenceKernels):
    """Remembers the index of every layer, as a mask."""

    def __init__(self) -> None:
        self.masks: list[torch.Tensor] = []

    def attention(self, q, k, v, index, *, scale):
        self.masks.append(index.to_mask())
        return super().attention(q, k, v, index, scale=scale)


@pytest.fixture
def profile(examples):
    return examples.with_named_plans(examples.make_profile())


def run(profile, point: OperatingPoint):
    """(engine, masks of its sparse layers, outputs, dense outputs) of a prefill."""
    kernels = Kept()
    make = make_pattern_factory(point, profile, block_size=BLOCK)
    engine = Engine(
        make_pattern=make, point=point, kernels=kernels, block_size=BLOCK, layers=LAYERS
    )
    engine.begin(q_len=LENGTH, kv_len=LENGTH)
    g = torch.Generator().manual_seed(4)
    outputs, dense = [], []
    for layer in LAYERS:
        q = torch.randn(2, 4, LENGTH, 16, generator=g)
        k, v = torch.randn(2, 2, 2, LENGTH, 16, generator=g)
        outputs.append(engine.attend(layer=layer, q=q, k=k, v=v, scale=SCALE))
        dense.append(dense_attention(q, k, v, scale=SCALE))
    return engine, kernels.masks, outputs, dense


def branches(engine: Engine) -> list[list[Branch] | None]:
    layers = engine.report.forwards[0].layers
    return [
        None if one.branch is None else [*map(Branch, one.branch[0].tolist())] for one in layers
    ]


def test_a_point_runs_the_plan_that_it_names(profile) -> None:
    named, _, _, _ = run(profile, POINT)
    own, _, _, _ = run(profile, dataclasses.replace(POINT, plan=""))
    safe, _, _, _ = run(profile, dataclasses.replace(POINT, plan="safe"))
    assert branches(own) == branches(safe) != branches(named)
    assert branches(named)[0][3] is Branch.SHARED  # a borrower of its own layer
    with pytest.raises(UsageError, match="has no plan 'slow'"):
        run(profile, dataclasses.replace(POINT, plan="slow"))


def test_a_borrower_of_its_own_layer_has_its_lenders_mask(profile) -> None:
    _, masks, _, _ = run(profile, POINT)
    assert torch.equal(masks[0][:, 3], masks[0][:, 1])
    assert torch.equal(masks[1][:, 1], masks[0][:, 1])
    assert not torch.equal(masks[1][:, 0], masks[0][:, 1])


@pytest.mark.parametrize("local_blocks", [0, 1, 3])
@pytest.mark.parametrize("drift", [None, 0.2])
def test_first_block_diagonal_and_local_blocks_are_always_on(
    profile, local_blocks: int, drift: float | None
) -> None:
    point = dataclasses.replace(POINT, local_blocks=local_blocks, drift=drift)
    engine, masks, _, _ = run(profile, point)
    grid = BlockGrid(q_len=LENGTH, kv_len=LENGTH, block_size=BLOCK)
    for mask in masks:
        assert mask[:, :, forced_blocks(grid)].all()
    forced = forced_blocks(grid, local_blocks=local_blocks)
    fallback = (Branch.VERTICAL_SLASH, Branch.DENSE, Branch.PIVOT)
    for layer, head in OF_MASS:
        number = LAYERS.index(layer)
        for sequence, branch in enumerate(engine.report.forwards[0].layers[number].branch[:, head]):
            if Branch(int(branch)) not in fallback:
                mask = masks[number][sequence, head]
                assert mask[forced].all()
                assert not mask[grid.causal_mask()].all()


@pytest.mark.parametrize("last_rows", [1, 3])
def test_last_query_blocks_are_dense_in_every_head(profile, last_rows: int) -> None:
    _, masks, outputs, dense = run(profile, dataclasses.replace(POINT, last_rows=last_rows))
    _, before, _, _ = run(profile, POINT)
    first = masks[0].shape[2] - last_rows - 1  # the last row holds 24 queries of 64
    for number, mask in enumerate(masks):
        for row in range(first, mask.shape[2]):
            assert mask[:, :, row, : row + 1].all()
        assert torch.equal(mask[:, :, :first], before[number][:, :, :first])
        torch.testing.assert_close(outputs[number][:, :, first * BLOCK :],
                                   dense[number][:, :, first * BLOCK :])  # fmt: skip


def test_dense_first_layers_lend_nothing(profile) -> None:
    engine, masks, outputs, dense = run(profile, dataclasses.replace(POINT, dense_layers=1))
    torch.testing.assert_close(outputs[0], dense[0])
    assert (outputs[1] - dense[1]).abs().max() > 1e-2
    assert len(masks) == 2
    first, second, third = branches(engine)
    assert first is None
    # All lenders were in layer 0: their borrowers are vertical-slash.
    assert second == [Branch.VERTICAL_SLASH] * 4
    assert third is not None
    assert third[0] is Branch.VERTICAL_SLASH


def test_a_named_plan_without_heads_is_refused(profile) -> None:
    empty = NamedPlan(name="empty", plan=dataclasses.replace(profile.plan, heads=()))
    profile = dataclasses.replace(profile, plans=(empty,))
    with pytest.raises(UsageError, match="has no plan"):
        make_pattern_factory(dataclasses.replace(POINT, plan="empty"), profile)
