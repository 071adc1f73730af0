"""From the runtime's report of a prefill to what is said about it, chunks and layers summed up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sp_profile.prefill_types import BranchCounts, ComputePath, LayerResult, Sparsity
from sp_runtime.report import ForwardSummary, LayerSummary, PrefillReport


@dataclass(frozen=True, kw_only=True, slots=True)
class _Share:
    """One layer in one forward; weight: causal blocks of one head."""

    layer: int
    weight: int
    density: float
    estimation: float
    branches: BranchCounts


def summarise(report: PrefillReport, *, num_chunks: int, layers: int, heads: int) -> Sparsity:
    """The first `num_chunks` forwards of a report: a prompt's chunks, without its decoding.

    layers, heads: of the model. Layers that the model computes itself count in no density.
    """
    summary = report.summary()
    native = {layer.layer: layer.reason for layer in summary.native_layers}
    ours = [layer for layer in range(layers) if layer not in native]
    forwards = summary.forwards[:num_chunks]
    weights = [record.causal_blocks for record in report.forwards[:num_chunks]]
    shares = [
        share
        for forward, weight in zip(forwards, weights, strict=True)
        for share in _shares(forward, weight, ours, heads)
    ]
    reasons = [forward.reason for forward in forwards if forward.path == "dense"]
    return Sparsity(
        path=_path(forwards),
        reasons=tuple(dict.fromkeys(reasons)),
        density=_mean([(share.weight, share.density) for share in shares]),
        estimation=_mean([(share.weight, share.estimation) for share in shares]),
        branches=_total(shares),
        layers=tuple(_layer(layer, shares, native) for layer in range(layers)),
        audits=tuple(audit for audit in summary.audits if audit.forward < num_chunks),
    )


def _shares(
    forward: ForwardSummary, weight: int, layers: list[int], heads: int
) -> Iterator[_Share]:
    sparse = {layer.layer: layer for layer in forward.layers if not layer.dense_reason}
    for layer in layers:
        if layer in sparse:
            yield _sparse_share(sparse[layer], weight)
        else:
            dense = BranchCounts(dense=heads)
            yield _Share(layer=layer, weight=weight, density=1.0, estimation=0.0, branches=dense)


def _sparse_share(layer: LayerSummary, weight: int) -> _Share:
    totals = layer.totals
    assert totals.density is not None
    assert totals.estimation is not None
    return _Share(
        layer=layer.layer,
        weight=weight,
        density=totals.density,
        estimation=totals.estimation,
        branches=BranchCounts(**{branch.name: branch.count for branch in totals.branches}),
    )


def _layer(layer: int, shares: list[_Share], native: dict[int, str]) -> LayerResult:
    own = [share for share in shares if share.layer == layer]
    return LayerResult(
        layer=layer,
        density=_mean([(share.weight, share.density) for share in own]) if own else None,
        estimation=_mean([(share.weight, share.estimation) for share in own]) if own else None,
        branches=_total(own),
        native=native.get(layer),
    )


def _path(forwards: tuple[ForwardSummary, ...]) -> ComputePath:
    paths = {forward.path for forward in forwards}
    return paths.pop() if len(paths) == 1 else "mixed"


def _mean(weighted: list[tuple[int, float]]) -> float:
    """Weighted mean; 1 where every layer is native and none is ours."""
    total = sum(weight for weight, _ in weighted)
    return sum(weight * value for weight, value in weighted) / total if total else 1.0


def _total(shares: list[_Share]) -> BranchCounts:
    total = BranchCounts()
    for share in shares:
        total = total + share.branches
    return total
