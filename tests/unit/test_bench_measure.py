"""Statistics, output checks, planted inputs, crossovers, rooflines."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp_profile.bench.check import Inputs, check_output
from sp_profile.bench.clock import Clock
from sp_profile.bench.clocked import ClockedKernels, Spans, layer_parts
from sp_profile.bench.inputs import LayerShape, Planting, planted_inputs, random_inputs
from sp_profile.bench.kernel_bench import Candidate, KernelBench
from sp_profile.bench.layer_bench import _crossover
from sp_profile.bench.masks import MaskMaker
from sp_profile.bench.mass_bench import mass_row
from sp_profile.bench.peers import PEERS, choose_peers
from sp_profile.bench.roofline import Ceilings, roofline
from sp_profile.bench.stats import percentile, tflops, time_stats
from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import UsageError
from sp_runtime.kernels.reference import ReferenceKernels

CPU = torch.device("cpu")
SHAPE = LayerShape(length=500, heads=4, kv_heads=2, head_dim=64, block_size=64, dtype="float32")


@given(
    values=st.lists(st.floats(0.001, 1e4), min_size=1, max_size=20),
    percent=st.sampled_from([20, 50, 80]),
)
def test_percentiles_are_numpys(values: list[float], percent: int) -> None:
    assert percentile(values, percent) == pytest.approx(np.percentile(values, percent))


def test_time_stats_are_in_order() -> None:
    stats = time_stats([3.0, 1.0, 2.0, 10.0])
    assert (stats.median_ms, stats.runs) == (2.5, 4)
    assert stats.p20_ms < stats.median_ms < stats.p80_ms


def test_tflops_by_hand() -> None:
    assert tflops(2 * 10**12, 4.0) == pytest.approx(500)


def test_the_clock_calls_as_often_as_it_says() -> None:
    calls: list[int] = []
    measured = Clock(CPU, repeat=7).measure(lambda: calls.append(1))
    assert measured.times.runs == 7
    assert len(calls) == 1 + 7  # warm-up, runs
    assert measured.peak_bytes is None


class Wrong(ReferenceKernels):
    """Leaves one listed block out of one row: less than any tolerance could excuse."""

    def attention(self, q, k, v, index, *, scale):
        mask = index.to_mask()
        mask[0, 0, -1, 0] = False
        index = self.build_index(mask, index.grid, None)
        return super().attention(q, k, v, index, scale=scale)


class Unwritten(ReferenceKernels):
    """Writes every row but the last."""

    def attention(self, q, k, v, index, *, scale):
        out, lse = super().attention(q, k, v, index, scale=scale)
        out[:, :, -1] = float("nan")
        return out, lse


def kernel_rows(kernels, peers="none"):
    bench = KernelBench(
        own=[Candidate(name=kernels.name, kernels=kernels)],
        peers=choose_peers(peers),
        device=CPU,
        clock=Clock(CPU, repeat=1),
        seed=0,
        ceilings=Ceilings(matmul_tflops=1.0, copy_bytes_per_s=1e9),
    )

    def cases(grid: BlockGrid):
        made = MaskMaker(grid=grid, heads=4, group=2, cluster=2, seed=0, device=CPU)
        yield from made.make("random", 0.5)
        yield from made.make("random", 1.0)

    return list(bench.rows(SHAPE, cases))


def test_a_right_kernel_is_timed() -> None:
    sparse, dense = kernel_rows(ReferenceKernels(), "auto")
    own = sparse[0]
    assert (own.status, own.ratio, own.detail != "") == ("ok", 1.0, True)
    assert own.check is not None
    assert own.check.error <= own.check.bound
    assert own.tflops == pytest.approx(4 * 64**2 * 64 * own.blocks / own.times.median_ms / 1e9)
    assert own.density == own.blocks / 4 / SHAPE.grid.num_causal_blocks == 0.5
    assert {row.kernel for row in dense} == {"reference"} | {peer.name for peer in PEERS}
    # Dense peers know no masks, so they appear where every block is on.
    assert {row.kernel for row in sparse} == {"reference", "fa4-sparse", "flex", "flexprefill"}
    for row in sparse[1:]:
        assert (row.status, row.tflops, row.ratio) == ("unavailable", None, None)
        assert "CUDA" in row.problem


@pytest.mark.parametrize("kernels", [Wrong(), Unwritten()], ids=["missing-block", "unwritten"])
def test_a_wrong_kernel_reports_no_speed(kernels: ReferenceKernels) -> None:
    for rows in kernel_rows(kernels, "auto"):
        (own,) = rows  # nor do peers, as there is nothing to compare them with
        assert own.status == "wrong"
        assert own.problem
        assert (own.times, own.tflops, own.ratio, own.roofline) == (None, None, None, None)


def test_a_peer_that_raises_is_reported_with_its_error() -> None:
    class Broken:
        name, dense = "broken", False

        def obstacle(self, device):
            return None

        def prepare(self, work):
            raise ArithmeticError("tensor cores are on strike")

    bench = KernelBench(
        own=[Candidate(name="reference", kernels=ReferenceKernels())],
        peers=[Broken()],
        device=CPU,
        clock=Clock(CPU, repeat=1),
        seed=0,
        ceilings=None,
    )
    made = MaskMaker(grid=SHAPE.grid, heads=4, group=2, cluster=2, seed=0, device=CPU)
    (rows,) = bench.rows(SHAPE, lambda grid: iter(made.make("random", 0.5)))
    assert [row.status for row in rows] == ["ok", "failed"]
    assert rows[1].problem == "ArithmeticError: tensor cores are on strike"


def test_the_check_takes_attention_and_nothing_else(oracle) -> None:
    inputs = random_inputs(SHAPE, CPU, seed=5)
    made = MaskMaker(grid=SHAPE.grid, heads=4, group=2, cluster=2, seed=1, device=CPU)
    (case,) = made.make("random", 0.4)
    out, _ = oracle.attention(inputs.q, inputs.k, inputs.v, case.mask, SHAPE.grid, inputs.scale)
    assert check_output(out.float(), inputs, case.mask, seed=0).error < 1e-6
    assert not check_output(out.float() * 1.01, inputs, case.mask, seed=0).ok


def test_mass_is_checked_and_timed() -> None:
    row = mass_row(SHAPE, ReferenceKernels(), CPU, Clock(CPU, repeat=1), seed=0)
    assert row.status == "ok"
    assert row.ratio == pytest.approx(row.mass.median_ms / row.attention.median_ms)

    class Shifted(ReferenceKernels):
        def block_mass(self, *args, **kwargs):
            return super().block_mass(*args, **kwargs).roll(1, -1)

    row = mass_row(SHAPE, Shifted(), CPU, Clock(CPU, repeat=1), seed=0)
    assert (row.status, row.mass, row.ratio) == ("wrong", None, None)


@pytest.mark.parametrize("columns", [4, 32])
def test_planted_attention_goes_where_it_was_planted(columns: int) -> None:
    shape = LayerShape(
        length=8192, heads=2, kv_heads=1, head_dim=128, block_size=128, dtype="float32"
    )
    planting = Planting(columns=columns)
    inputs: Inputs = planted_inputs(shape, planting, CPU, seed=0)
    scores = (inputs.q[0, :, -1] @ inputs.k[0, 0].T) * inputs.scale
    weights = scores.softmax(-1)
    marked = inputs.k[0, 0, :, 0] != 0
    assert int(marked.sum()) == columns + 1
    marked[0] = False
    for row in weights:
        found = row[marked].sum(), row[-2 * planting.band :].sum(), row[0]
        wanted = planting.column_mass, planting.band_mass, planting.sink_mass
        # Side lobes of the random waves move mass about; the shape of it must hold.
        assert all(abs(float(f) - w) < 0.2 for f, w in zip(found, wanted, strict=True)), found
        assert sum(map(float, found)) > 0.9


def test_more_columns_than_tokens_are_refused() -> None:
    with pytest.raises(UsageError, match="columns"):
        planted_inputs(SHAPE, Planting(columns=500), CPU, seed=0)


def test_heads_must_divide() -> None:
    with pytest.raises(UsageError, match="multiple"):
        LayerShape(length=64, heads=5, kv_heads=2, head_dim=64, block_size=64, dtype="float32")


def test_parts_add_up() -> None:
    spans = Spans(CPU)
    kernels = ClockedKernels(ReferenceKernels(), spans)
    inputs = random_inputs(SHAPE, CPU, seed=0)
    mask = SHAPE.grid.causal_mask().expand(1, 4, -1, -1)

    def run() -> None:
        kernels.last_block(inputs.q, inputs.k, inputs.grid, scale=inputs.scale)
        index = kernels.build_index(mask, inputs.grid, None)
        kernels.attention(inputs.q, inputs.k, inputs.v, index, scale=inputs.scale)

    spans.timed("all", run)()
    assert kernels.index is not None
    taken = spans.take()
    assert set(taken) == {"all", "estimate", "index", "attention"}
    parts = layer_parts(taken, total="all", layers=2)
    assert parts.total_ms == pytest.approx(taken["all"] / 2)
    assert parts.mass_ms == 0
    assert 0 < parts.overhead < 1
    assert spans.take() == {}


@pytest.mark.parametrize(
    ("speeds", "tokens", "estimate"),
    [
        ([(8, 0.5), (16, 2.0)], 16, 8 * math.sqrt(2)),
        ([(8, 1.5), (16, 2.0)], 8, None),
        ([(8, 1.5), (16, 0.5), (32, 2.0)], 32, 16 * math.sqrt(2)),  # from there on, not once
        ([(8, 2.0), (16, 0.9)], None, None),
        ([], None, None),
    ],
)
def test_crossovers(speeds, tokens, estimate) -> None:
    found = _crossover("m", speeds)
    assert found.tokens == tokens
    assert found.estimate == (None if estimate is None else pytest.approx(estimate))


def test_roofline_by_hand() -> None:
    shape = LayerShape(
        length=256, heads=2, kv_heads=1, head_dim=64, block_size=64, dtype="bfloat16"
    )
    found = roofline(shape, 10, 1.0, Ceilings(matmul_tflops=1e-3, copy_bytes_per_s=1e12))
    assert found.operations == 10 * 4 * 64 * 64 * 64
    # q, out: 2 heads; k, v: 1 head; lse: float32.
    assert found.compulsory_bytes == 256 * 64 * 2 * (2 + 2 + 1 + 1) + 256 * 2 * 4
    assert found.tile_bytes == 10 * 2 * 64 * 64 * 2
    assert found.bound == "arithmetic"
    assert found.floor_ms == pytest.approx(found.operations / 1e9 * 1e3)
    slow_copy = roofline(shape, 10, 1.0, Ceilings(matmul_tflops=1e3, copy_bytes_per_s=1e6))
    assert slow_copy.bound == "memory"


def test_peers_by_name() -> None:
    assert choose_peers("none") == ()
    assert [peer.name for peer in choose_peers("cudnn, flex")] == ["cudnn", "flex"]
    with pytest.raises(UsageError, match="banana"):
        choose_peers("banana")
