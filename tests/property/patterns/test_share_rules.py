"""SharePrefill's rules `paper` and `release` against a literal state machine, and their laws."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import ProfileMismatchError, UsageError
from sp_runtime.kernels.reference import ReferenceKernels
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.patterns.share import SharePattern
from sp_runtime.patterns.share_tables import ShareTables
from sp_runtime.profile import Cluster, ClusterEvidence, HeadRef

SCALE = 0.25
LAYERS, HEADS, KV_HEADS, DIM = 4, 6, 2, 16
BLOCK = 64

PAPER = OperatingPoint(
    rule="paper", gamma=0.8, tau=0.15, delta=0.35, min_budget=64, slash_cover="one"
)
RELEASE = replace(PAPER, rule="release", tau=0.25, kappa=0.12, phi=0.9, slash_cover="both")


def cluster_of(number: int, members: list[tuple[int, int]], enabled: bool = True) -> Cluster:
    evidence = ClusterEvidence(
        jaccard_mean=0.5,
        jaccard_core_mean=0.5,
        recall_mean=0.9,
        recall_p10=0.9,
        lender_density=0.2,
        vertical_slash_density=0.3,
        saving=0.1,
        reason="",
    )
    refs = tuple(HeadRef(*member) for member in sorted(members))
    return Cluster(id=number, members=refs, anchor=None, enabled=enabled, evidence=evidence)


def clusters(enabled: bool = True) -> tuple[Cluster, ...]:
    """Heads 0-2 everywhere; heads 3, 4 from layer 1 on; a disabled cluster; head 5 is noise."""
    return (
        cluster_of(7, [(layer, head) for layer in range(LAYERS) for head in range(3)], enabled),
        cluster_of(2, [(1, 3), (1, 4), (2, 4), (3, 3), (3, 4)], enabled),
        cluster_of(4, [(0, 3), (2, 3)], enabled=False),
    )


@dataclass
class Prompt:
    """q [B, LAYERS, H, Nq, D], k, v [B, LAYERS, Hkv, N, D]."""

    grid: BlockGrid
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor

    def sequence(self, b: int) -> Prompt:
        part = slice(b, b + 1)
        return Prompt(self.grid, self.q[part], self.k[part], self.v[part])


def prompt_of(grid: BlockGrid, seed: int, sharpness: float, batch: int = 2) -> Prompt:
    """Layers that look alike up to noise, so that patterns can be shared between them."""
    g = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    keys = noise(batch, 1, 1, grid.kv_len, DIM)
    places = noise(batch, 1, 1, grid.num_cols, DIM)
    keys = keys + places.repeat_interleave(grid.block_size, dim=3)[:, :, :, : grid.kv_len]
    k = keys + 0.2 * noise(batch, LAYERS, KV_HEADS, grid.kv_len, DIM)
    wanted = noise(batch, 1, HEADS, 1, DIM) + 0.5 * noise(batch, LAYERS, HEADS, 1, DIM)
    q = wanted + 0.7 * noise(batch, LAYERS, HEADS, grid.q_len, DIM)
    sharp = sharpness * (0.3 + torch.rand(batch, LAYERS, HEADS, 1, 1, generator=g) * 2)
    return Prompt(grid, q * sharp, k, noise(*k.shape))


def run(point: OperatingPoint, prompt: Prompt, groups: tuple[Cluster, ...]) -> list[Decision]:
    """The decision of every layer, with the memory of the pattern in between."""
    kernels = ReferenceKernels()
    pattern = SharePattern(point=point, tables=ShareTables(groups, block_size=BLOCK))
    decisions = []
    for layer in range(LAYERS):
        q, k, v = prompt.q[:, layer], prompt.k[:, layer], prompt.v[:, layer]
        inputs = LayerInputs(layer=layer, q=q, k=k, grid=prompt.grid, scale=SCALE, kernels=kernels)
        decision = pattern.decide(inputs)
        mass = None
        if decision.mass_heads is not None:
            index = kernels.build_index(decision.mask, prompt.grid, decision.dense)
            _, lse = kernels.attention(q, k, v, index, scale=SCALE)
            mass = kernels.block_mass(q, k, lse, decision.mass_heads, prompt.grid, scale=SCALE)
        pattern.remember(inputs, decision, mass)
        decisions.append(decision)
    return decisions


class LiteralShare:
    """One sequence, head by head, in the words of the rules."""

    def __init__(self, literal: Any, point: OperatingPoint, groups: tuple[Cluster, ...]) -> None:
        self.literal = literal
        self.point = point
        self.enabled = [cluster for cluster in groups if cluster.enabled]
        self.pivots: dict[int, dict[str, Any]] = {}
        self.margin = np.inf  # the closest that any figure came to its threshold

    def below(self, value: float, threshold: float) -> bool:
        self.margin = min(self.margin, abs(value - threshold))
        return value < threshold

    def layer(self, layer: int, q: np.ndarray, k: np.ndarray, grid: BlockGrid) -> list[Any]:
        """(branch, mask) of every head; the mask of a pivot is every causal block."""
        new: dict[int, dict[str, Any]] = {}
        taken = [
            self.head(HeadRef(layer, head), q[head], k[head // (HEADS // KV_HEADS)], grid, new)
            for head in range(HEADS)
        ]
        self.pivots.update(new)  # only later layers share them
        return taken

    def head(
        self, ref: HeadRef, q: np.ndarray, k: np.ndarray, grid: BlockGrid, new: dict[int, Any]
    ) -> tuple[Branch, np.ndarray]:
        lit, point = self.literal, self.point
        attention = lit.attention(q, k, SCALE)
        vertical, slash = lit.last_block(attention, grid.block_size)
        signature, slash_signature = lit.bins(vertical, grid), lit.bins(slash, grid)
        own = lit.vertical_slash(
            vertical,
            slash,
            grid,
            gamma=point.gamma,
            min_budget=point.min_budget,
            max_budget=point.max_budget,
            cover=point.slash_cover,
        )
        minimum = lit.minimum(vertical, slash, grid, point.min_budget, point.slash_cover)
        cluster = next((c for c in self.enabled if ref in c.members), None)
        if point.rule == "release":
            pooled = lit.pooled_row(q, k, grid, SCALE)
            if self.below(lit.sqrt_jsd(pooled, signature), point.kappa):
                chosen = lit.query_aware(q, k, grid, point.gamma, SCALE)
                return Branch.QUERY_AWARE, chosen | minimum
        elif cluster is not None:
            uniform = np.full(grid.num_cols, 1 / grid.num_cols)
            if not self.below(lit.sqrt_jsd(signature, uniform), point.delta):
                return Branch.VERTICAL_SLASH, own
        if cluster is None:
            return Branch.VERTICAL_SLASH, own
        pivot = self.pivots.get(cluster.id)
        if pivot is None:
            if cluster.id in new:
                return Branch.VERTICAL_SLASH, own
            mass = lit.mass(attention, grid)
            new[cluster.id] = {
                "vertical": signature,
                "slash": slash_signature,
                "mask": lit.gamma_mask(mass, point.gamma) | lit.forced(grid),
                "rho": mass[own].sum() / mass.sum(),
            }
            causal = np.tri(grid.num_rows, grid.num_cols, grid.first_row, dtype=bool)
            return Branch.PIVOT, causal
        alike = self.below(lit.sqrt_jsd(pivot["vertical"], signature), point.tau)
        if point.rule == "release":
            alike &= self.below(lit.sqrt_jsd(pivot["slash"], slash_signature), point.tau)
            alike &= self.below(pivot["rho"], point.phi)
        if not alike:
            return Branch.VERTICAL_SLASH, own
        shared = pivot["mask"]
        return Branch.SHARED, shared | minimum if point.rule == "release" else shared


def compare(literal: Any, point: OperatingPoint, prompt: Prompt) -> Counter[Branch]:
    decisions = run(point, prompt, clusters())
    seen: Counter[Branch] = Counter()
    for b in range(prompt.q.shape[0]):
        oracle = LiteralShare(literal, point, clusters())
        for layer, decision in enumerate(decisions):
            q, k = prompt.q[b, layer].numpy(), prompt.k[b, layer].numpy()
            expected = oracle.layer(layer, q, k, prompt.grid)
            assume(oracle.margin > 1e-3)  # float32 cannot tell
            for head, (branch, mask) in enumerate(expected):
                seen[branch] += 1
                assert Branch(int(decision.branch[b, head])) == branch
                assert bool(decision.dense[b, head]) == (branch == Branch.PIVOT)
                if branch != Branch.PIVOT:
                    np.testing.assert_array_equal(decision.mask[b, head].numpy(), mask)
            slots = [] if decision.mass_heads is None else decision.mass_heads[b].tolist()
            pivots = [h for h, (branch, _) in enumerate(expected) if branch == Branch.PIVOT]
            assert sorted(h for h in slots if h >= 0) == pivots
    return seen


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    kv_len = draw(st.integers(65, 450))
    q_len = draw(st.sampled_from([kv_len, kv_len, kv_len // 2, 1 + kv_len // 5]))
    grid = BlockGrid(q_len=q_len, kv_len=kv_len, block_size=BLOCK)
    return prompt_of(grid, draw(st.integers(0, 2**31)), draw(st.sampled_from([0.3, 1.0, 2.0])))


@pytest.mark.parametrize("point", [PAPER, RELEASE], ids=lambda point: point.rule)
def test_equals_the_literal_state_machine(literal, point: OperatingPoint) -> None:
    seen: Counter[Branch] = Counter()

    @settings(max_examples=12)
    @given(prompt=prompts())
    def every_example(prompt: Prompt) -> None:
        seen.update(compare(literal, point, prompt))

    every_example()
    expected = {Branch.PIVOT, Branch.SHARED, Branch.VERTICAL_SLASH}
    if point.rule == "release":
        expected.add(Branch.QUERY_AWARE)
    assert set(seen) == expected  # no branch went untested


def fixed_prompt(sharpness: float = 1.0, seed: int = 3) -> Prompt:
    return prompt_of(BlockGrid(q_len=400, kv_len=400, block_size=BLOCK), seed, sharpness)


def branches(decisions: list[Decision]) -> Counter[Branch]:
    return Counter(
        Branch(code) for decision in decisions for code in decision.branch.flatten().tolist()
    )


@pytest.mark.parametrize("point", [PAPER, RELEASE], ids=lambda point: point.rule)
def test_batch_of_two_equals_two_batches_of_one(point: OperatingPoint) -> None:
    prompt = fixed_prompt()
    together = run(point, prompt, clusters())
    assert branches(together)[Branch.SHARED] > 0
    assert any(not torch.equal(each.branch[0], each.branch[1]) for each in together)
    for b in range(2):
        for both, alone in zip(together, run(point, prompt.sequence(b), clusters()), strict=True):
            assert torch.equal(both.branch[b], alone.branch[0])
            assert torch.equal(both.mask[b], alone.mask[0])
            torch.testing.assert_close(both.cost[b], alone.cost[0])


@pytest.mark.parametrize("point", [PAPER, RELEASE], ids=lambda point: point.rule)
def test_tau_of_zero_switches_sharing_off_even_between_equal_heads(point: OperatingPoint) -> None:
    prompt = fixed_prompt()
    equal = Prompt(
        prompt.grid,
        prompt.q[:, :1, :1].expand_as(prompt.q),
        prompt.k[:, :1, :1].expand_as(prompt.k),
        prompt.v,
    )
    point = replace(point, kappa=0.0, delta=1.01, phi=1.0)
    assert branches(run(point, equal, clusters()))[Branch.SHARED] > 0
    assert branches(run(replace(point, tau=0.0), equal, clusters()))[Branch.SHARED] == 0


def test_delta_over_one_switches_the_exclusion_off() -> None:
    prompt = fixed_prompt(sharpness=30.0)
    excluded = run(replace(PAPER, delta=0.05), prompt, clusters())
    assert branches(excluded)[Branch.PIVOT] == 0
    found = run(replace(PAPER, delta=1.01), prompt, clusters())
    assert (found[0].mass_heads == torch.tensor([[0], [0]])).all()
    assert (found[1].mass_heads == torch.tensor([[-1, 3], [-1, 3]])).all()
    assert branches(found)[Branch.PIVOT] == 4


def test_one_hot_attention_decides_without_nan() -> None:
    prompt = fixed_prompt(sharpness=1e4)
    for point in (replace(PAPER, delta=1.01), RELEASE):
        decisions = run(point, prompt, clusters())
        assert all(torch.isfinite(decision.cost).all() for decision in decisions)
        assert branches(decisions)[Branch.PIVOT] > 0


def test_heads_of_disabled_clusters_take_vertical_slash() -> None:
    decisions = run(PAPER, fixed_prompt(), clusters(enabled=False))
    assert branches(decisions) == {Branch.VERTICAL_SLASH: 2 * LAYERS * HEADS}
    assert all(decision.mass_heads is None for decision in decisions)


@pytest.mark.parametrize("point", [PAPER, RELEASE], ids=lambda point: point.rule)
def test_masks_are_causal_and_hold_the_forced_blocks(literal, point: OperatingPoint) -> None:
    prompt = fixed_prompt()
    causal = prompt.grid.causal_mask()
    forced = torch.from_numpy(literal.forced(prompt.grid))
    for decision in run(point, prompt, clusters()):
        assert not (decision.mask & ~causal).any()
        assert decision.mask[:, :, forced].all()


def test_decisions_wait_for_no_value_on_the_host() -> None:
    """Meta tensors have no values: anything that would wait for one raises."""
    grid = BlockGrid(q_len=300, kv_len=400, block_size=BLOCK)

    class MetaKernels(ReferenceKernels):
        def last_block(self, q, k, grid, *, scale):
            from sp_runtime.kernels.base import LastBlockEstimate

            x = torch.empty(*q.shape[:2], grid.kv_len, device="meta")
            return LastBlockEstimate(vertical=x, slash=x)

    q = torch.empty(2, HEADS, 300, DIM, device="meta")
    k = torch.empty(2, KV_HEADS, 400, DIM, device="meta")
    for point in (PAPER, RELEASE):
        pattern = SharePattern(point=point, tables=ShareTables(clusters(), block_size=BLOCK))
        for layer in range(LAYERS):
            inputs = LayerInputs(
                layer=layer, q=q, k=k, grid=grid, scale=SCALE, kernels=MetaKernels()
            )
            decision = pattern.decide(inputs)
            slots = decision.mass_heads
            assert slots is not None
            mass = torch.empty(*slots.shape, grid.num_rows, grid.num_cols, device="meta")
            pattern.remember(inputs, decision, mass)
            assert decision.mask.shape == (2, HEADS, grid.num_rows, grid.num_cols)


def test_a_profile_that_does_not_fit_is_refused() -> None:
    prompt = fixed_prompt()
    inputs = LayerInputs(
        layer=0,
        q=prompt.q[:, 0],
        k=prompt.k[:, 0],
        grid=prompt.grid,
        scale=SCALE,
        kernels=ReferenceKernels(),
    )
    with pytest.raises(UsageError, match="block size 128"):
        SharePattern(point=PAPER, tables=ShareTables(clusters(), block_size=128)).decide(inputs)
    many = (cluster_of(0, [(0, HEADS)]),)
    with pytest.raises(ProfileMismatchError, match="head 6 in layer 0"):
        SharePattern(point=PAPER, tables=ShareTables(many, block_size=BLOCK)).decide(inputs)
