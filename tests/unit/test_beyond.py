"""The experiment beyond.py: its sums over blocks against formulas over tokens, in float64."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.kernels.reference import ReferenceKernels

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SIZE = 64


@pytest.fixture
def core(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import beyond_core

    yield beyond_core
    for name in ("beyond_core", "beyond_forward"):
        sys.modules.pop(name, None)


@pytest.fixture
def script(core: ModuleType) -> Iterator[ModuleType]:
    import beyond

    yield beyond
    sys.modules.pop("beyond")


def inputs(length: int) -> tuple[Tensor, Tensor, Tensor]:
    """q [2, N, 16], scaled, k and v [N, 16]; keys of a block are alike, so masks are sparse."""
    rng = torch.Generator().manual_seed(length)
    centres = torch.randn(-(-length // SIZE), 16, generator=rng).repeat_interleave(SIZE, 0)
    keys = centres[:length] + 0.5 * torch.randn(length, 16, generator=rng)
    queries = 0.6 * torch.randn(2, length, 16, generator=rng)
    return queries, keys, torch.randn(length, 16, generator=rng)


def mass(*rows: list[float]) -> Tensor:
    """float32 [1, R, R] from rows of a triangle."""
    return torch.stack([torch.tensor(row + [0.0] * (len(rows) - len(row))) for row in rows])[None]


def literal(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """float64 softmax(q k^T + bias) v."""
    return torch.softmax(q.double() @ k.double().T + bias.double(), -1) @ v.double()


@pytest.mark.parametrize("last", [64, 37])
def test_a_row_under_a_mask(core: ModuleType, last: int) -> None:
    q, k, v = inputs(3 * SIZE + last)
    row = core.attend_row(q[:, 3 * SIZE :], k, v, SIZE, 5)
    keep = torch.tensor([[True, False, False, True], [False, False, True, True]])
    masks = keep.float().expand(2, -1, -1)
    mass = torch.tensor([0.4, 0.3, 0.1, 0.2]).expand(2, 2, -1)
    scale = torch.tensor([1.0, 2.0, 3.0, 1.0]).expand(2, 2, -1)
    plain, keys, scaled = row.outputs(masks), row.with_keys(masks), row.with_keys(masks, scale)
    means = row.with_means(masks, plain, mass)

    position = torch.arange(3 * SIZE, len(k))
    future = (torch.arange(len(k)) > position[:, None]).double() * -1e9
    mean_k = torch.stack([part.mean(0) for part in k.split(SIZE)])
    mean_v = torch.stack([part.mean(0) for part in v.split(SIZE)])
    close = {"rtol": 1e-4, "atol": 1e-5, "check_dtype": False}
    for head in range(2):
        queries = q[head, 3 * SIZE :]
        torch.testing.assert_close(row.dense[head], literal(queries, k, v, future), **close)
        for number, kept in enumerate(keep):
            hidden = (~kept).double().repeat_interleave(SIZE)[: len(k)] * -1e9
            want = literal(queries, k, v, future + hidden)[::5]
            torch.testing.assert_close(plain[head, number], want, **close)
            # A pseudo key that counts as often as a block has keys: ln 64 more.
            count = (torch.full((4,), 64.0).log() + kept * -1e9).expand(last, -1)
            for found, factor in ((keys, torch.ones(4)), (scaled, scale[0, 0])):
                bias = torch.cat([future + hidden, count + factor.log()], 1)
                both = literal(queries, torch.cat([k, mean_k]), torch.cat([v, mean_v]), bias)
                torch.testing.assert_close(found[head, number], both[::5], **close)
            left = mass[0, 0] * ~kept
            want = (1 - left.sum()) * want + (left[:, None] * mean_v).sum(0)
            torch.testing.assert_close(means[head, number], want, **close)


def test_a_layer_is_what_the_kernels_compute(core: ModuleType) -> None:
    queries, keys, values = zip(inputs(300), inputs(300), strict=True)
    q = torch.cat([queries[0], queries[1].flip(1)])
    k, v = torch.stack([keys[0], keys[1].flip(0)]), torch.stack([values[0], values[1]])
    dense, layer = core.measure_layer(q, k, v, SIZE)
    grid, kernels = BlockGrid(q_len=300, kv_len=300, block_size=SIZE), ReferenceKernels()
    batch = (q[None], k[None], v[None])
    full, lse = kernels.attention(*batch, BlockIndex.full(1, 4, grid, "cpu"), scale=1.0)
    heads = torch.arange(4)[None]
    exact = kernels.block_mass(q[None], k[None], lse, heads, grid, scale=1.0)[0]
    sampled = kernels.sampled_mass(q[None], k[None], heads, grid, stride=16, scale=1.0)[0]
    torch.testing.assert_close(dense, full[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer.exact, exact, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(layer.sampled, sampled, rtol=1e-4, atol=1e-6)

    masks = core.forced_gamma_masks(layer.sampled)
    curve, same = layer.curves["s16"], core.mass_curve(layer.exact, masks)
    torch.testing.assert_close(curve.density, same.density)
    torch.testing.assert_close(curve.recall, same.recall)
    at = core.GAMMAS.index(0.7)
    index = BlockIndex.from_mask(masks[at][None], grid)
    assert not masks[at].equal(grid.causal_mask().expand_as(masks[at]))
    out, _ = kernels.attention(*batch, index, scale=1.0)
    picked = torch.cat([torch.arange(a, b, 5) for a, b in pairwise([0, 64, 128, 192, 256, 300])])
    away, known = (x[0][:, picked].square().sum((1, 2)) for x in (out - full, full))
    torch.testing.assert_close(curve.error[:, at], (away / known).sqrt(), rtol=1e-3, atol=1e-5)


def test_corrections_of_a_layer_are_those_of_its_rows(core: ModuleType) -> None:
    q, k, v = inputs(640)
    _, layer = core.measure_layer(q, k[None], v[None], SIZE)
    at = core.GAMMAS.index(0.6)
    for source, mass in (("exact", layer.exact), ("s16", layer.sampled)):
        masks = core.forced_gamma_masks(mass)[at].float()
        away, norm = {kind: torch.zeros(2) for kind in core.CORRECTIONS}, torch.zeros(2)
        for number in range(10):
            end, cols = (number + 1) * SIZE, slice(0, number + 1)
            row = core.attend_row(q[:, end - SIZE : end], k[:end], v[:end], SIZE, 5)
            kept, of_row = masks[:, number, None, cols], mass[:, number, None, cols]
            keys = row.key_shares if source == "exact" else row.key_shares[..., [15, 31, 47, 63]]
            scale = (of_row / keys.mean(-1)[:, None]).clamp(1, 16)
            found = {
                "key": row.with_keys(kept),
                "scaled": row.with_keys(kept, scale),
                "mean": row.with_means(kept, row.outputs(kept), of_row),
            }
            for kind, out in found.items():
                away[kind] += (out[:, 0] - row.dense[:, ::5]).square().sum((1, 2))
            norm += row.dense[:, ::5].square().sum((1, 2))
        for kind, squares in away.items():
            error = layer.curves[f"{source}+{kind}"].error[:, at]
            torch.testing.assert_close(error, (squares / norm).sqrt(), rtol=1e-3, atol=1e-5)


def test_value_weights_and_strides(core: ModuleType) -> None:
    shares = torch.rand(1, 2, SIZE, generator=torch.Generator().manual_seed(0))
    shares /= shares.sum(1, keepdim=True)
    found = core.source_masses(shares, [torch.tensor([3.0, 1.0, 9.0]), torch.tensor([1.0, 1.0])])
    first, second = shares[0].mean(1).tolist()
    assert found[1, 0, 0].item() == pytest.approx(3 * first / (3 * first + second))
    every = {16: shares[0, 0, [15, 31, 47, 63]], 32: shares[0, 0, [31, 63]], 64: shares[0, 0, 63]}
    for name, stride in (("s16", 16), ("s32", 32), ("s64", 64)):
        place = core.SOURCES.index(name)
        assert found[place, 0, 0].item() == pytest.approx(every[stride].mean().item())


def test_chunks_repeat_columns_and_diagonals(core: ModuleType) -> None:
    rows = mass([1.0], [0.6, 0.4], [0.2, 0.0, 0.8], [0.1, 0.2, 0.3, 0.4])
    # The second row: by key block 0.6 and 0.4, by distance 0.4 and nothing.
    reused = {
        "absolute": ([0.6, 0.4, 0.4], [0.6, 0.4, 0.0, 0.4]),
        "relative": ([0.6, 0.0, 0.4], [0.6, 0.4, 0.0, 0.4]),
        "both": ([1.2, 0.4, 0.4], [1.2, 0.4, 0.0, 0.4]),
    }
    for kind, (third, fourth) in reused.items():
        found = core.chunk_mass(rows, 2, 1, kind)[0].tolist()
        assert found[1][:2] == pytest.approx([0.6, 0.4])
        assert found[2][:3] == pytest.approx([x / sum(third) for x in third])
        assert found[3] == pytest.approx([x / sum(fourth) for x in fourth])
    # Two rows are averaged: their diagonals are 0.4 and 0.6, their key blocks 0 0.6 and 0.4.
    rows = mass([1.0], [0.6, 0.4], [0.4, 0.0, 0.6], [1.0], [1.0], [1.0])
    found = core.chunk_mass(rows, 2, 2, "relative")[0, 3].tolist()
    assert found == pytest.approx([x / 1.2 for x in (0.5, 0.2, 0.0, 0.5)] + [0, 0])
    assert core.chunk_estimate(8, 2, 2) == (1 + 2 + 3 + 4) / 36
    assert core.chunk_estimate(8, 4, 1) == ((1 + 2) + 4 + 6) / 36


def test_a_carried_mask_is_the_refreshed_layers(script: ModuleType, core: ModuleType) -> None:
    layers = [core.measure_layer(*stacked(core, seed), SIZE)[1] for seed in (640, 641, 642)]
    ((_, curves, share), *_) = script.carried([layers])
    parts = [
        layers[0].curves["s16"],
        core.mass_curve(layers[1].exact, core.forced_gamma_masks(layers[0].sampled)),
        layers[2].curves["s16"],
    ]
    assert share == 0.5
    assert curves[0].recall.equal(torch.cat([part.recall for part in parts]))
    assert curves[0].density.equal(torch.cat([part.density for part in parts]))
    # Its own mask is the best that it can borrow from itself, by what its own curve says.
    kept = script.lender_recall(layers[0], layers[0])
    own = layers[0].curves["s16"].recall[:, core.GAMMAS.index(0.9)]
    torch.testing.assert_close(kept.diagonal(), own, rtol=1e-4, atol=1e-5)


def stacked(core: ModuleType, length: int) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = inputs(length)
    return q[:, :640], k[None, :640], v[None, :640]


def test_ratios_lie_on_the_line_between_gammas(script: ModuleType) -> None:
    count = len(script.GAMMAS)
    falling = [1 - 0.05 * n for n in range(count)]
    cost = [0.1 + 0.01 * n for n in range(count)]
    reference = {"error": falling, "cost": cost}
    half = {"error": [x + 0.025 for x in falling], "cost": cost}
    equal = script.Equal(figure="error", gamma=0.8)  # the fourth
    assert script.ratio(reference, reference, equal, "cost") == 1
    assert script.ratio(half, reference, equal, "cost") == round(0.135 / 0.13, 4)
    worse = {"error": [2.0] * count, "cost": cost}
    assert script.ratio(worse, reference, equal, "cost") is None
    curve = script.Curve(density=torch.full((2, count), 0.25), recall=torch.ones(2, count))
    found = script.figures(curve, 0.03, 1 / 64)
    assert found["cost"] == pytest.approx([0.25 + 0.03 + 0.75 / 64] * count, abs=1e-5)
    assert "error" not in found


def test_a_sparse_forward_is_the_kernels(core: ModuleType) -> None:
    import beyond_forward

    q, k, v = inputs(300)
    grid, kernels = BlockGrid(q_len=300, kv_len=300, block_size=SIZE), ReferenceKernels()
    batch = (q[None], k[None, None], v[None, None])
    heads = torch.arange(2)[None]
    mass = kernels.sampled_mass(*batch[:2], heads, grid, stride=16, scale=1.0)
    masks = core.forced_gamma_masks(mass)[core.GAMMAS.index(0.7)]
    want, _ = kernels.attention(*batch, BlockIndex.from_mask(masks, grid), scale=1.0)
    settings = {"size": SIZE, "gamma": 0.7}
    out, density = beyond_forward.sparse_output(q, k, v, keys=False, **settings)
    torch.testing.assert_close(out, want[0], rtol=1e-4, atol=1e-5)
    assert density == pytest.approx(masks.sum().item() / (2 * grid.num_causal_blocks))
    kept, _ = beyond_forward.sparse_output(q, k, v, keys=True, **settings)
    assert not kept.allclose(out, atol=1e-3)
