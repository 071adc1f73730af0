"""The report: densities, costs and branches of what was recorded, in Python numbers."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from sp_runtime.patterns.base import Branch
from sp_runtime.report import (
    BranchCount,
    DenseForwards,
    ForwardRecord,
    LayerRecord,
    NativeLayer,
    PrefillReport,
    Totals,
)


def layer_of(layer: int, blocks: list[list[int]], cost: float, branch: Branch) -> LayerRecord:
    table = torch.tensor(blocks)
    return LayerRecord(
        layer=layer,
        blocks=table,
        cost=torch.full(table.shape, cost),
        branch=torch.full(table.shape, branch, dtype=torch.uint8),
    )


def sparse_forward(*layers: LayerRecord, causal_blocks: int = 10) -> ForwardRecord:
    return ForwardRecord(
        q_len=256,
        kv_len=256,
        path="sparse",
        reason="method share",
        causal_blocks=causal_blocks,
        layers=list(layers),
    )


def dense_forward(q_len: int, reason: str) -> ForwardRecord:
    return ForwardRecord(q_len=q_len, kv_len=300, path="dense", reason=reason, causal_blocks=1)


def test_density_and_cost_are_over_the_causal_blocks_of_sparse_layers() -> None:
    report = PrefillReport()
    report.forwards.append(
        sparse_forward(
            layer_of(0, [[4, 6]], 1.0, Branch.SHARED),
            LayerRecord(layer=1, dense_reason="dense_layers 2"),
            layer_of(2, [[10, 10]], 0.5, Branch.PIVOT),
        )
    )
    (forward,) = report.summary().forwards
    assert forward.totals.density == pytest.approx(30 / 40)
    assert forward.totals.estimation == pytest.approx(3 / 40)
    assert [layer.totals.density for layer in forward.layers] == [0.5, None, 1.0]
    assert [layer.totals.estimation for layer in forward.layers] == [0.1, None, 0.05]
    assert [layer.dense_reason for layer in forward.layers] == ["", "dense_layers 2", ""]
    assert forward.layers[1].totals == Totals(density=None, estimation=None, branches=())


def test_kernels_name_every_attention_kernel_that_ran_once() -> None:
    report = PrefillReport(kernels="triton: asked for by name")
    assert report.summary().kernels == "triton: asked for by name"
    layers = [layer_of(i, [[1]], 0.0, Branch.SHARED) for i in range(3)]
    named = [
        dataclasses.replace(layer, kernel=kernel)
        for layer, kernel in zip(layers, ("fast", "portable", "fast"), strict=True)
    ]
    report.forwards.append(sparse_forward(*named))
    wanted = "triton: asked for by name; attention by fast and portable"
    assert report.summary().kernels == wanted


def test_totals_weigh_forwards_by_their_blocks() -> None:
    report = PrefillReport()
    report.forwards += [
        sparse_forward(layer_of(0, [[1]], 0.0, Branch.STREAMING), causal_blocks=1),
        sparse_forward(layer_of(0, [[9]], 9.0, Branch.STREAMING), causal_blocks=99),
    ]
    totals = report.summary().totals
    assert totals.density == pytest.approx(0.1)
    assert totals.estimation == pytest.approx(0.09)


def test_branches_are_counted_by_name_over_sequences_and_heads() -> None:
    record = layer_of(0, [[1, 2], [3, 4]], 0.0, Branch.VERTICAL_SLASH)
    record.branch[0, 1] = Branch.QUERY_AWARE
    report = PrefillReport()
    report.forwards.append(sparse_forward(record))
    assert report.summary().totals.branches == (
        BranchCount(name="vertical_slash", count=3),
        BranchCount(name="query_aware", count=1),
    )


def test_dense_forwards_and_native_layers_keep_their_reasons() -> None:
    report = PrefillReport()
    report.add_native(1, "sliding window 512")
    report.forwards += [
        dense_forward(200, "short: 200 < min_tokens 1024"),
        dense_forward(1, "decode"),
        dense_forward(1, "decode"),
    ]
    summary = report.summary()
    assert summary.totals == Totals(density=None, estimation=None, branches=())
    assert summary.dense == (
        DenseForwards(reason="short: 200 < min_tokens 1024", forwards=1, tokens=200),
        DenseForwards(reason="decode", forwards=2, tokens=2),
    )
    assert summary.native_layers == (NativeLayer(layer=1, reason="sliding window 512"),)
    report.clear()
    assert report.summary().forwards == ()
    assert report.summary().native_layers == summary.native_layers


def test_summary_is_plain_numbers() -> None:
    report = PrefillReport()
    report.forwards.append(sparse_forward(layer_of(0, [[4]], 1.0, Branch.SHARED)))
    text = json.dumps(dataclasses.asdict(report.summary()), allow_nan=False)
    assert json.loads(text)["totals"]["density"] == 0.4


def test_a_report_reads_like_its_summary() -> None:
    report = PrefillReport(kernels="reference: cpu device")
    assert report.density is report.estimation is None
    assert report.branches == {}
    report.forwards.append(sparse_forward(layer_of(0, [[4, 6]], 1.0, Branch.SHARED)))
    report.forwards += [dense_forward(1, "decode")] * 2
    report.add_native(1, "sliding window of 128 tokens")
    totals = report.summary().totals
    assert (report.density, report.estimation) == (totals.density, totals.estimation) == (0.5, 0.1)
    assert report.branches == {"shared": 2}
    assert str(report).splitlines() == [
        "sparse   1 forward of 256 tokens: density 0.500, estimation 0.100 of causal blocks",
        "heads    2 shared",
        "dense    2 forwards of 2 tokens: decode",
        "native   1 layer: sliding window of 128 tokens",
        "kernels  reference: cpu device",
    ]


def test_a_report_is_one_json_document() -> None:
    report = PrefillReport()
    report.forwards.append(sparse_forward(layer_of(0, [[4, 6]], 1.0, Branch.SHARED)))
    document = json.loads(report.to_json())
    assert document["schema"] == "sp.prefill_report"
    assert document["totals"]["density"] == report.density
    assert document["forwards"][0]["layers"][0]["totals"]["branches"] == [
        {"name": "shared", "count": 2}
    ]
    assert document == json.loads(json.dumps(report.to_dict()))
