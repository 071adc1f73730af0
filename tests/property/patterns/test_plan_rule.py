"""Rule `plan` against the plan read out head by head in float64, and its guards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import ProfileMismatchError, UsageError
from sp_runtime.kernels.base import LastBlockEstimate
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.plan import PlanPattern
from sp_runtime.patterns.plan_tables import PlanTables
from sp_runtime.profile import HeadPlan, HeadRef

SCALE = 0.25
LAYERS, HEADS, KV_HEADS, DIM = 3, 6, 2, 16
BLOCK = 64
POINT = OperatingPoint(
    rule="plan", min_budget=64, sink=64, drift=None, local_blocks=1, row_slack=2.0
)

ASSIGNED = [
    # layer 0: lenders of both kinds, and heads that nobody borrows from
    ("dense", {"gamma": 0.7}),
    ("sampled", {"gamma": 0.8, "stride": 8}),
    ("sampled", {"gamma": 0.6, "stride": 4}),
    ("vertical_slash", {"gamma": 0.5}),
    ("streaming", {"gamma": 1.0, "window": 100}),
    ("query_aware", {"gamma": 0.4}),
    # layer 1
    ("borrow", {"gamma": 0.5, "lender": HeadRef(0, 0)}),
    ("borrow", {"gamma": 0.9, "lender": HeadRef(0, 1)}),
    ("borrow", {"gamma": 0.7, "lender": HeadRef(1, 3)}),  # a later head of its own layer
    ("sampled", {"gamma": 0.9, "stride": 4}),
    ("streaming", {"gamma": 1.0, "window": 1}),
    ("vertical_slash", {"gamma": 0.9}),
    # layer 2
    ("borrow", {"gamma": 0.8, "lender": HeadRef(1, 3)}),
    ("borrow", {"gamma": 0.8, "lender": HeadRef(0, 0)}),
    ("sampled", {"gamma": 0.7, "stride": 8}),
    ("borrow", {"gamma": 0.6, "lender": HeadRef(2, 2)}),
    ("query_aware", {"gamma": 0.6}),
    ("dense", {"gamma": 1.0}),
]

OWN_BRANCH = {
    "vertical_slash": Branch.VERTICAL_SLASH,
    "query_aware": Branch.QUERY_AWARE,
    "streaming": Branch.STREAMING,
    "sampled": Branch.SAMPLED,
    "borrow": Branch.SHARED,
}


def plan_heads() -> tuple[HeadPlan, ...]:
    return tuple(
        HeadPlan(
            layer=number // HEADS,
            head=number % HEADS,
            assignment=assignment,
            recall=0.9,
            cost=0.5,
            **settings,
        )
        for number, (assignment, settings) in enumerate(ASSIGNED)
    )


def tensors(grid: BlockGrid, seed: int, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """q [B, LAYERS, H, Nq, D] and k [B, LAYERS, Hkv, N, D]."""
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, LAYERS, HEADS, grid.q_len, DIM, generator=g)
    q = q + torch.randn(batch, LAYERS, HEADS, 1, DIM, generator=g)
    return q, torch.randn(batch, LAYERS, KV_HEADS, grid.kv_len, DIM, generator=g)


def run(
    point: OperatingPoint,
    q: torch.Tensor,
    k: torch.Tensor,
    grid: BlockGrid,
    *,
    dense_layers: int = 0,
    heads: tuple[HeadPlan, ...] | None = None,
) -> tuple[list[Decision], PlanPattern]:
    """The decisions of the layers from `dense_layers` on."""
    kernels = ReferenceKernels()
    plans = plan_heads() if heads is None else heads
    tables = PlanTables(plans, block_size=BLOCK, dense_layers=dense_layers)
    pattern = PlanPattern(point=point, tables=tables)
    decisions = []
    for layer in range(dense_layers, LAYERS):
        inputs = LayerInputs(
            layer=layer, q=q[:, layer], k=k[:, layer], grid=grid, scale=SCALE, kernels=kernels
        )
        decision = pattern.decide(inputs)
        mass = None
        # The store is written anew in the next layer.
        decision = replace(decision, mask=decision.head_masks(), slots=None)
        if decision.mass_heads is not None:
            index = kernels.build_index(decision.mask, grid, decision.dense)
            _, lse = kernels.attention(inputs.q, inputs.k, inputs.k, index, scale=SCALE)
            mass = kernels.block_mass(
                inputs.q, inputs.k, lse, decision.mass_heads, grid, scale=SCALE
            )
        pattern.remember(inputs, decision, mass)
        decisions.append(decision)
    return decisions, pattern


class LiteralPlan:
    """One sequence, head by head."""

    def __init__(self, literal: Any, point: OperatingPoint, dense_layers: int) -> None:
        self.literal = literal
        self.point = point
        self.dense_layers = dense_layers
        self.lent: dict[HeadRef, np.ndarray] = {}
        self.rows: dict[HeadRef, np.ndarray] = {}
        lenders = {plan.lender for plan in plan_heads() if plan.lender is not None}
        self.lenders = {ref for ref in lenders if ref.layer >= dense_layers}

    def head(self, plan: HeadPlan, q: np.ndarray, k: np.ndarray, grid: BlockGrid) -> Any:
        """(branch, mask), the mask None for a dense head."""
        lit, point, ref = self.literal, self.point, plan.ref
        attention = lit.attention(q, k, SCALE)
        vertical, slash = lit.last_block(attention, BLOCK)
        own = lit.vertical_slash(
            vertical,
            slash,
            grid,
            gamma=plan.gamma,
            min_budget=point.min_budget,
            max_budget=point.max_budget,
            cover=point.slash_cover,
        )
        self.rows[ref] = lit.bins(vertical, grid)
        mask = own
        branch = OWN_BRANCH.get(plan.assignment, Branch.DENSE)
        if plan.assignment == "dense":
            mass = lit.mass(attention, grid)
            self.lent[ref] = lit.gamma_mask(mass, plan.gamma) | self.forced(grid)
            return (Branch.PIVOT if ref in self.lenders else Branch.DENSE), None
        if plan.assignment == "sampled":
            mass = lit.mass(attention, grid, plan.stride)
            mask = lit.spread_mask(mass, plan.gamma, self.point.row_slack) | self.forced(grid)
            self.lent[ref] = mask
        elif plan.assignment == "query_aware":
            mask = lit.query_aware(q, k, grid, plan.gamma, SCALE)
            mask |= lit.minimum(vertical, slash, grid, point.min_budget, point.slash_cover)
        elif plan.assignment == "streaming":
            mask = lit.forced(grid)
            for row, span in enumerate(lit.rows(grid)):
                first = (grid.first_row + row) * BLOCK
                for col in range(grid.first_row + row + 1):
                    last_key = col * BLOCK + BLOCK - 1
                    mask[row, col] |= first - last_key < plan.window or col * BLOCK < point.sink
                assert span
        elif plan.assignment == "borrow":
            if plan.lender.layer < self.dense_layers:
                return Branch.VERTICAL_SLASH, own
            mask = self.lent[plan.lender]
            if point.drift is not None:
                distance = lit.sqrt_jsd(self.rows[ref], self.rows[plan.lender])
                far = point.drift * point.drift_widen
                assert min(abs(distance - point.drift), abs(distance - far)) > 1e-3
                if distance > far:
                    return Branch.VERTICAL_SLASH, own
                if distance > point.drift:
                    least = lit.minimum(vertical, slash, grid, point.min_budget, point.slash_cover)
                    return Branch.WIDENED, mask | least
        return branch, mask

    def forced(self, grid: BlockGrid) -> np.ndarray:
        mask = self.literal.forced(grid)
        for row in range(grid.num_rows):
            diagonal = grid.first_row + row
            mask[row, max(diagonal - self.point.local_blocks, 0) : diagonal] = True
        return mask


def in_order(plans: tuple[HeadPlan, ...]) -> list[HeadPlan]:
    """Lenders before their borrowers of the same layer."""
    return sorted(plans, key=lambda plan: (plan.layer, plan.lender is not None, plan.head))


@pytest.mark.parametrize(
    ("q_len", "drift", "widen", "dense_layers", "local_blocks", "row_slack"),
    [
        (400, None, 2.0, 0, 1, 2.0),
        (400, None, 2.0, 1, 0, 1.0),
        (400, 0.06, 1.4, 0, 1, 1.0),
        (400, 0.06, 1.0, 1, 2, 1.3),
        (400, 0.0, 2.0, 0, 1, 64.0),
        (170, 0.06, 1.4, 0, 0, 2.0),
        (170, 0.06, 40.0, 1, 1, 1.0),
        (170, 2.0, 2.0, 0, 2, 3.0),
        (3, 0.06, 1.4, 0, 1, 2.0),
        (3, None, 2.0, 1, 1, 1.0),
    ],
)
def test_equals_the_plan_read_head_by_head(
    literal,
    q_len: int,
    drift: float | None,
    widen: float,
    dense_layers: int,
    local_blocks: int,
    row_slack: float,
) -> None:
    grid = BlockGrid(q_len=q_len, kv_len=400, block_size=BLOCK)
    q, k = tensors(grid, seed=5)
    point = replace(
        POINT,
        drift=drift,
        drift_widen=widen,
        dense_layers=dense_layers,
        local_blocks=local_blocks,
        row_slack=row_slack,
    )
    decisions, _ = run(point, q, k, grid, dense_layers=dense_layers)
    for b in range(2):
        oracle = LiteralPlan(literal, point, dense_layers)
        for plan in in_order(plan_heads()):
            kv_head = plan.head // (HEADS // KV_HEADS)
            if plan.layer < dense_layers:
                continue
            branch, mask = oracle.head(
                plan,
                q[b, plan.layer, plan.head].numpy(),
                k[b, plan.layer, kv_head].numpy(),
                grid,
            )
            decision = decisions[plan.layer - dense_layers]
            assert Branch(int(decision.branch[b, plan.head])) == branch, plan
            assert bool(decision.dense[b, plan.head]) == (mask is None)
            if mask is not None:
                found = decision.mask[b, plan.head].numpy()
                np.testing.assert_array_equal(found, mask, err_msg=str(plan))


def borrowers(decisions: list[Decision]) -> torch.Tensor:
    """uint8 [B, 6], the branches of the heads that borrow."""
    return torch.cat(
        [decisions[1].branch[:, :3], decisions[2].branch[:, :2], decisions[2].branch[:, 3:4]], dim=1
    )


def test_drift_guard_tells_sequences_and_borrowers_apart() -> None:
    grid = BlockGrid(q_len=400, kv_len=400, block_size=BLOCK)
    q, k = tensors(grid, seed=5)
    decisions, _ = run(replace(POINT, drift=0.06, drift_widen=1.4), q, k, grid)
    taken = borrowers(decisions)
    assert set(taken.flatten().tolist()) == {
        Branch.SHARED,
        Branch.WIDENED,
        Branch.VERTICAL_SLASH,
    }
    assert not torch.equal(taken[0], taken[1])


def test_a_widened_mask_holds_its_lenders_and_more() -> None:
    """A borrower of its own layer: what it adds is its own, and its lender keeps its mask."""
    grid = BlockGrid(q_len=400, kv_len=400, block_size=BLOCK)
    q, k = tensors(grid, seed=5)
    point = replace(POINT, min_budget=192, local_blocks=0)
    plain, _ = run(point, q, k, grid)
    given_up, _ = run(replace(point, drift=0.0, drift_widen=64.0), q, k, grid)
    assert set(borrowers(given_up).flatten().tolist()) == {Branch.VERTICAL_SLASH}
    widened, _ = run(replace(point, drift=0.02, drift_widen=64.0), q, k, grid)
    assert set(borrowers(widened).flatten().tolist()) == {Branch.WIDENED}
    lent, grown = plain[2].mask[:, 2], widened[2].mask[:, 3]
    assert torch.equal(plain[2].mask[:, 3], lent)
    assert torch.equal(widened[2].mask[:, 2], lent)
    assert (grown >= lent).all()
    assert (grown != lent).any()


def test_a_place_is_lent_again_after_its_last_borrower() -> None:
    """Places are few, and none is written while a mask in it is still needed."""
    slots = PlanTables(plan_heads(), block_size=BLOCK, dense_layers=0).slots
    assert slots.windows == (1, 100)
    # (0, 0) and (1, 3) are needed in layer 2; (0, 1) no longer, but its last reader is layer 1.
    assert slots.lender == {(0, 0): 0, (0, 1): 1, (1, 3): 2, (2, 2): 1}
    assert (slots.first_lender, slots.first_own, slots.total) == (2, 5, 11)
    assert PlanTables(plan_heads(), block_size=BLOCK, dense_layers=1).slots.num_lenders == 2


@given(data=st.data())
def test_lenders_never_meet_in_a_place(data: st.DataObject) -> None:
    """Any plan: between a lender's layer and its last borrower's, its place is its own."""
    plans: list[HeadPlan] = []
    for layer, head in ((layer, head) for layer in range(5) for head in range(3)):
        lenders = [p.ref for p in plans if p.assignment == "sampled"]
        lender = data.draw(st.none() | st.sampled_from(lenders)) if lenders else None
        kind = "sampled" if lender is None else "borrow"
        stride = None if lender else 8
        plans.append(
            HeadPlan(
                layer=layer, head=head, assignment=kind, gamma=0.9, stride=stride, lender=lender,
                recall=1.0, cost=1.0,
            )
        )  # fmt: skip
    slots = PlanTables(plans, block_size=BLOCK, dense_layers=0).slots
    spans: dict[int, set[int]] = {}
    for ref, place in slots.lender.items():
        last = max(plan.layer for plan in plans if plan.lender == ref)
        needed = set(range(ref.layer, last + 1))
        assert not needed & spans.setdefault(place, set())
        spans[place] |= needed
    most = max((sum(layer in layers for layers in spans.values()) for layer in range(5)), default=0)
    assert slots.num_lenders == len(spans) == most


def test_layers_out_of_order_are_a_mistake_of_the_caller() -> None:
    grid = BlockGrid(q_len=300, kv_len=300, block_size=BLOCK)
    q, k = tensors(grid, seed=1)
    tables = PlanTables(plan_heads(), block_size=BLOCK, dense_layers=0)
    pattern = PlanPattern(point=POINT, tables=tables)
    inputs = LayerInputs(
        layer=1, q=q[:, 1], k=k[:, 1], grid=grid, scale=SCALE, kernels=ReferenceKernels()
    )
    with pytest.raises(AssertionError, match="layers come in order"):
        pattern.decide(inputs)


def test_cost_counts_what_was_estimated() -> None:
    grid = BlockGrid(q_len=320, kv_len=320, block_size=BLOCK)  # 5 blocks, 15 causal
    q, k = tensors(grid, seed=1)
    (first, second, _), _ = run(POINT, q, k, grid)
    base = 2.5  # half of one row of 5 blocks, for every head of a layer that needs the estimate
    expected = [base + 7.5, base + 7.5 / 8, base + 7.5 / 4, base, base, base + 15 / 64]
    assert first.cost.tolist() == [pytest.approx(expected)] * 2
    assert second.cost[0].tolist() == pytest.approx([base, base, base, base + 7.5 / 4, base, base])


def test_a_layer_without_need_takes_no_estimate() -> None:
    grid = BlockGrid(q_len=320, kv_len=320, block_size=BLOCK)
    heads = tuple(
        replace(plan, assignment="streaming", window=64, gamma=1.0, stride=None, lender=None)
        for plan in plan_heads()
    )
    q, k = tensors(grid, seed=1)
    decisions, _ = run(replace(POINT, drift=0.1), q, k, grid, heads=heads)
    assert all((decision.cost == 0).all() for decision in decisions)


def test_decisions_wait_for_no_value_on_the_host() -> None:
    """Meta tensors have no values: anything that would wait for one raises."""
    grid = BlockGrid(q_len=300, kv_len=400, block_size=BLOCK)

    class MetaKernels(ReferenceKernels):
        def last_block(self, q, k, grid, *, scale):
            x = torch.empty(*q.shape[:2], grid.kv_len, device="meta")
            return LastBlockEstimate(vertical=x, slash=x)

        def sampled_mass(self, q, k, heads, grid, *, stride, scale):
            return torch.empty(*heads.shape, grid.num_rows, grid.num_cols, device="meta")

    tables = PlanTables(plan_heads(), block_size=BLOCK, dense_layers=0)
    pattern = PlanPattern(point=replace(POINT, drift=0.2), tables=tables)
    for layer in range(LAYERS):
        inputs = LayerInputs(
            layer=layer,
            q=torch.empty(2, HEADS, 300, DIM, device="meta"),
            k=torch.empty(2, KV_HEADS, 400, DIM, device="meta"),
            grid=grid,
            scale=SCALE,
            kernels=MetaKernels(),
        )
        decision = pattern.decide(inputs)
        slots = decision.mass_heads
        mass = None
        if slots is not None:
            mass = torch.empty(*slots.shape, grid.num_rows, grid.num_cols, device="meta")
        pattern.remember(inputs, decision, mass)
        assert decision.head_masks().shape == (2, HEADS, grid.num_rows, grid.num_cols)


def test_a_plan_that_does_not_fit_is_refused() -> None:
    grid = BlockGrid(q_len=100, kv_len=100, block_size=BLOCK)
    q, k = tensors(grid, seed=1)
    with pytest.raises(ProfileMismatchError, match="names 5 heads in layer 0, the model 6"):
        run(POINT, q, k, grid, heads=plan_heads()[1:])
    other = BlockGrid(q_len=100, kv_len=100, block_size=128)
    with pytest.raises(UsageError, match="calibrated at block size 64, the engine runs 128"):
        run(POINT, q, k, other)
