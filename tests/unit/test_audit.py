"""Audits: which heads, that nothing else changes, and recalls against float64."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp_runtime.audit import Audit, HeadAudit
from sp_runtime.block_index import BlockGrid
from sp_runtime.engine import Engine
from sp_runtime.errors import UsageError
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Branch
from sp_runtime.patterns.registry import make_pattern_factory
from sp_runtime.report import PrefillReport

SCALE, BLOCK, LAYERS = 1.5, 64, (0, 2, 3)
PLAN = OperatingPoint(plan="fast", min_tokens=64, min_budget=64, sink=64, local_blocks=1)


def random_qkv(q_len: int, kv_len: int, batch: int = 2):
    g = torch.Generator().manual_seed(3)
    q = torch.randn(len(LAYERS), batch, 4, q_len, 16, generator=g)
    k, v = torch.randn(2, len(LAYERS), batch, 2, kv_len, 16, generator=g)
    return q, k, v


class Prefilled:
    """One forward of the examples' profile, with every decision as masks [B, H, R, C]."""

    def __init__(
        self, profile, point: OperatingPoint, q_len: int, kv_len: int, audit: Audit | None = None
    ) -> None:
        make = make_pattern_factory(point, profile, block_size=BLOCK)
        self.q, self.k, self.v = random_qkv(q_len, kv_len)
        self.grid = BlockGrid(q_len=q_len, kv_len=kv_len, block_size=BLOCK)
        self.masks: dict[int, torch.Tensor] = {}
        self.dense: dict[int, torch.Tensor] = {}
        self.outputs: dict[int, torch.Tensor] = {}

        done = self

        class Watched:
            def __init__(self) -> None:
                self.pattern = make()

            def decide(self, inputs):
                decision = self.pattern.decide(inputs)
                done.masks[inputs.layer] = decision.head_masks().clone()
                done.dense[inputs.layer] = decision.dense.clone()
                return decision

            def remember(self, inputs, decision, mass):
                self.pattern.remember(inputs, decision, mass)

        engine = Engine(
            make_pattern=Watched,
            point=point,
            kernels=ReferenceKernels(),
            block_size=BLOCK,
            layers=LAYERS,
            audit=audit,
        )
        engine.begin(q_len=q_len, kv_len=kv_len)
        for number, layer in enumerate(LAYERS):
            self.outputs[layer] = engine.attend(
                layer=layer, q=self.q[number], k=self.k[number], v=self.v[number], scale=SCALE
            )
        self.report: PrefillReport = engine.report

    def attention(self, layer: int, sequence: int, head: int) -> torch.Tensor:
        """float64 [Nq, N], dense."""
        number = LAYERS.index(layer)
        q, k = self.q[number, sequence, head], self.k[number, sequence, head // 2]
        scores = q.double() @ k.double().T * SCALE
        causal = torch.ones(scores.shape, dtype=torch.bool).tril(k.shape[0] - q.shape[0])
        return scores.masked_fill(~causal, -torch.inf).softmax(-1)

    def recall(self, layer: int, sequence: int, head: int, last_rows: int = 0) -> float:
        """Mean over block rows of the attention inside the head's mask, in float64."""
        grid = self.grid
        if bool(self.dense[layer][sequence, head]):
            return 1.0
        mask = self.masks[layer][sequence, head]
        positions = torch.arange(grid.kv_len - grid.q_len, grid.kv_len)
        rows = positions // BLOCK - grid.first_row
        tokens = mask[rows][:, torch.arange(grid.kv_len) // BLOCK]
        inside = (self.attention(layer, sequence, head) * tokens).sum(-1)
        inside[rows >= grid.num_rows - last_rows] = 1
        return float(torch.stack([inside[rows == r].mean() for r in range(grid.num_rows)]).mean())


@pytest.fixture
def profile(examples):
    return examples.with_named_plans(examples.make_profile())


@pytest.mark.parametrize(
    ("point", "q_len"),
    [
        pytest.param(PLAN, 500, id="plan"),
        pytest.param(PLAN, 130, id="chunk"),
        pytest.param(dataclasses.replace(PLAN, drift=0.3, last_rows=2), 500, id="guarded"),
        pytest.param(OperatingPoint(method="sampled", gamma=0.5, min_tokens=64), 500, id="sampled"),
        pytest.param(
            OperatingPoint(rule="paper", delta=1.01, tau=1.0, min_budget=64, min_tokens=64),
            500,
            id="paper",
        ),
    ],
)
def test_recalls_of_every_head_are_those_of_float64(profile, point, q_len) -> None:
    done = Prefilled(profile, point, q_len, 500, Audit(1.0))
    audits = done.report.audits
    assert len(audits) == len(LAYERS) * 2 * 4
    for audit in audits:
        expected = done.recall(audit.layer, audit.sequence, audit.head, point.last_rows)
        assert audit.recall == pytest.approx(expected, abs=2e-5), audit
    assert min(audit.recall for audit in audits) < 0.98
    taken = torch.stack([one.branch for one in done.report.forwards[0].layers])
    for audit in audits:
        branch = taken[LAYERS.index(audit.layer), audit.sequence, audit.head]
        assert audit.branch == Branch(int(branch)).name.lower()


@pytest.mark.parametrize("point", [PLAN, dataclasses.replace(PLAN, dense_layers=1)])
def test_an_audit_changes_nothing_but_the_audits(profile, point) -> None:
    plain = Prefilled(profile, point, 500, 500)
    audited = Prefilled(profile, point, 500, 500, Audit(0.4, seed=1))
    assert plain.report.audits == ()
    chosen = {(audit.layer, audit.head) for audit in audited.report.audits}
    assert 0 < len(chosen) < 12
    assert min(audit.recall for audit in audited.report.audits) < 0.98
    for layer in LAYERS:
        assert torch.equal(plain.outputs[layer], audited.outputs[layer])
    assert plain.masks.keys() == audited.masks.keys()
    assert all(torch.equal(plain.masks[layer], audited.masks[layer]) for layer in plain.masks)
    ours, before = audited.report.summary(), plain.report.summary()
    assert dataclasses.replace(ours, audits=()) == before
    assert before.totals.density is not None
    assert before.totals.density < 1


def test_the_heads_are_the_same_whatever_the_method(profile) -> None:
    def chosen(point: OperatingPoint) -> list[HeadAudit]:
        return list(Prefilled(profile, point, 500, 500, Audit(0.4, seed=2)).report.audits)

    points = (
        PLAN,
        dataclasses.replace(PLAN, dense_layers=1),
        OperatingPoint(method="streaming", sink=64, window=64, min_tokens=64),
    )
    plan, after_a_layer, streaming = map(chosen, points)
    places = [(audit.sequence, audit.layer, audit.head) for audit in plan]
    for other in (after_a_layer, streaming):
        assert [(audit.sequence, audit.layer, audit.head) for audit in other] == places
    first = [audit for audit in after_a_layer if audit.layer == LAYERS[0]]
    assert first
    assert {(audit.branch, audit.recall) for audit in first} == {("dense", 1.0)}
    assert {audit.branch for audit in streaming} == {"streaming"}


def test_the_summary_holds_and_tells_them(profile) -> None:
    report = Prefilled(profile, PLAN, 500, 500, Audit(0.4, seed=1)).report
    summary = report.summary()
    assert summary.audits == report.audits
    assert summary.to_dict()["audits"][0]["branch"] == summary.audits[0].branch
    worst = min(summary.audits, key=lambda audit: audit.recall)
    line = next(line for line in str(report).splitlines() if line.startswith("audit"))
    assert line.endswith(f"(layer {worst.layer}, head {worst.head}, {worst.branch})")
    assert f" {len(summary.audits)} heads, recall " in line


@given(share=st.floats(0, 1), seed=st.integers(0, 99), heads=st.integers(1, 40))
def test_the_choice_is_the_same_in_every_run(share: float, seed: int, heads: int) -> None:
    runs = [Audit(share, seed=seed) for _ in range(2)]
    for _ in range(3):
        for audit in runs:
            audit.begin()
        for _ in range(4):
            first, second = (audit.take(heads) for audit in runs)
            assert first == second == tuple(sorted(set(first)))
            assert all(0 <= head < heads for head in first)
            assert share < 1 or len(first) == heads
            assert share > 0 or not first


@pytest.mark.parametrize(("share", "forwards"), [(0.001, 3000), (0.1, 500), (0.7, 100)])
def test_about_the_share_is_taken_everywhere(share: float, forwards: int) -> None:
    audit, layers, heads = Audit(share), 30, 9
    taken: Counter[tuple[int, int]] = Counter()
    for _ in range(forwards):
        audit.begin()
        for layer in range(layers):
            taken.update((layer, head) for head in audit.take(heads))
    # Six standard deviations of a binomial.
    expected = share * forwards
    for place in product(range(layers), range(heads)):
        assert abs(taken[place] - expected) < 6 * (expected * (1 - share)) ** 0.5 + 1
    total = expected * layers * heads
    assert abs(taken.total() - total) < 6 * (total * (1 - share)) ** 0.5


def test_forwards_and_seeds_differ() -> None:
    def chosen(audit: Audit) -> tuple[int, ...]:
        audit.begin()
        return audit.take(1000)

    first = Audit(0.05)
    assert len({chosen(first), chosen(first), chosen(Audit(0.05, seed=1))}) == 3


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match=r"audit .* is not in \[0, 1\]"):
        Audit(share)


def test_a_record_is_read_sequence_by_sequence(profile) -> None:
    audits = Prefilled(profile, PLAN, 500, 500, Audit(1.0)).report.audits
    assert audits[0] == dataclasses.replace(audits[0], forward=0, sequence=0, layer=0, head=0)
    places = [(one.layer, one.sequence, one.head) for one in audits]
    assert places == sorted(places)
    assert isinstance(audits[0], HeadAudit)
