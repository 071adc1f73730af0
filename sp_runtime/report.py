"""What every forward, layer and head did: collected on the device, summed up on request."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from sp_runtime.audit import AuditRecord, HeadAudit, told_audits
from sp_runtime.patterns.base import Branch

Path = Literal["sparse", "dense"]
REPORT_SCHEMA = "sp.prefill_report"


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRecord:
    """One layer of a sparse forward, as device tensors.

    dense_reason: why the whole layer was computed densely, else "".
    kernel: the attention kernel that ran, "" for a dense layer.
    blocks: int64 [B, H], blocks computed; cost: float32 [B, H], blocks of the estimates; branch:
    uint8 [B, H]. All three are None for a dense layer.
    """

    layer: int
    dense_reason: str = ""
    kernel: str = ""
    blocks: Tensor | None = None
    cost: Tensor | None = None
    branch: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardRecord:
    """One forward: a prompt, a chunk of one, or a decoding step; `layers` grows as it runs.

    reason: why it was dense, or what made it sparse. causal_blocks: of one head. audits: of its
    audited heads.
    """

    q_len: int
    kv_len: int
    path: Path
    reason: str
    causal_blocks: int
    layers: list[LayerRecord] = field(default_factory=list)
    audits: list[AuditRecord] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class BranchCount:
    """How many (sequence, layer, head) took a branch; name is that of `Branch`, lower-case."""

    name: str
    count: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Totals:
    """Blocks over causal blocks, of the sparse layers only.

    density: computed blocks; estimation: cost of the estimates in the same unit. Both are None
    where no layer was sparse. Branches that no head took are left out.
    """

    density: float | None
    estimation: float | None
    branches: tuple[BranchCount, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSummary:
    """One full-attention layer of a sparse forward; dense_reason is "" for a sparse layer."""

    layer: int
    dense_reason: str
    totals: Totals


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardSummary:
    """One forward; `layers` is empty for a dense one."""

    q_len: int
    kv_len: int
    path: Path
    reason: str
    totals: Totals
    layers: tuple[LayerSummary, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseForwards:
    """How many forwards were dense for one reason, and their queries."""

    reason: str
    forwards: int
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NativeLayer:
    """A layer that the model computes itself, such as a sliding-window one."""

    layer: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportSummary:
    """Everything that ran since the report was made or cleared.

    kernels: the backend of the sparse forwards, why it was chosen, and once sparse layers have run,
        their attention kernels.
    audits: the audited heads, in the order in which they ran.
    """

    kernels: str
    totals: Totals
    forwards: tuple[ForwardSummary, ...]
    dense: tuple[DenseForwards, ...]
    native_layers: tuple[NativeLayer, ...]
    audits: tuple[HeadAudit, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values that JSON holds, with a `schema` key."""
        return {"schema": REPORT_SCHEMA, **asdict(self)}

    def to_json(self, *, indent: int | None = None) -> str:
        """`to_dict` as one JSON document, ASCII."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    def __str__(self) -> str:
        """A few lines for people: density, branches, what was dense and what native."""
        return "\n".join(_told(self))


class PrefillReport:
    """Collects the records of an engine without synchronising; `summary` does.

    Device memory: three small tensors [B, H] a layer and sparse forward.
    """

    def __init__(self, kernels: str = "") -> None:
        self.kernels = kernels
        self.forwards: list[ForwardRecord] = []
        self.native_layers: list[NativeLayer] = []

    def add_native(self, layer: int, reason: str) -> None:
        """Note that the model computes a layer itself."""
        self.native_layers.append(NativeLayer(layer=layer, reason=reason))

    def clear(self) -> None:
        """Forget the forwards, as between two prompts; native layers are a fact of the model."""
        self.forwards.clear()

    def summary(self) -> ReportSummary:
        """Python numbers of everything collected so far; synchronises with the device."""
        tallies = [[_tally(layer, record) for layer in record.layers] for record in self.forwards]
        return ReportSummary(
            kernels=self._kernels_that_ran(),
            totals=_totals(tally for layers in tallies for tally in layers),
            forwards=tuple(
                _summarise(record, layers)
                for record, layers in zip(self.forwards, tallies, strict=True)
            ),
            dense=_dense_forwards(self.forwards),
            native_layers=tuple(self.native_layers),
            audits=self.audits,
        )

    @property
    def audits(self) -> tuple[HeadAudit, ...]:
        """Recall of the audited heads so far; synchronises with the device."""
        return tuple(
            audit
            for number, forward in enumerate(self.forwards)
            for record in forward.audits
            for audit in record.read(number)
        )

    @property
    def density(self) -> float | None:
        """Blocks computed / causal blocks of the sparse layers; None where none ran."""
        return self.summary().totals.density

    @property
    def estimation(self) -> float | None:
        """Cost of the estimates behind the masks, in the unit of `density`."""
        return self.summary().totals.estimation

    @property
    def branches(self) -> Mapping[str, int]:
        """How many (sequence, layer, head) took each branch; those that none took are left out."""
        return {branch.name: branch.count for branch in self.summary().totals.branches}

    def to_dict(self) -> dict[str, Any]:
        """`summary().to_dict()`."""
        return self.summary().to_dict()

    def to_json(self, *, indent: int | None = None) -> str:
        """`summary().to_json()`."""
        return self.summary().to_json(indent=indent)

    def __str__(self) -> str:
        return str(self.summary())

    def _kernels_that_ran(self) -> str:
        layers = [layer for record in self.forwards for layer in record.layers]
        names = dict.fromkeys(layer.kernel for layer in layers if layer.kernel)
        if not names:
            return self.kernels
        return "; attention by ".join(filter(None, (self.kernels, " and ".join(names))))


def _told(summary: ReportSummary) -> Iterable[str]:
    sparse = [forward for forward in summary.forwards if forward.path == "sparse"]
    totals = summary.totals
    if totals.density is None:
        yield "no sparse forward"
    else:
        tokens = sum(forward.q_len for forward in sparse)
        yield (
            f"sparse   {_counted(len(sparse), 'forward')} of {tokens} tokens: "
            f"density {totals.density:.3f}, estimation {totals.estimation:.3f} of causal blocks"
        )
        yield "heads    " + ", ".join(f"{each.count} {each.name}" for each in totals.branches)
    if summary.audits:
        yield f"audit    {told_audits(summary.audits)}"
    for one in summary.dense:
        yield f"dense    {_counted(one.forwards, 'forward')} of {one.tokens} tokens: {one.reason}"
    reasons = dict.fromkeys(layer.reason for layer in summary.native_layers)
    for reason in reasons:
        layers = [layer.layer for layer in summary.native_layers if layer.reason == reason]
        yield f"native   {_counted(len(layers), 'layer')}: {reason}"
    yield f"kernels  {summary.kernels}"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tally:
    """Sums over the sequences and heads of a layer; counts has one entry for each Branch."""

    blocks: int = 0
    cost: float = 0.0
    causal: int = 0
    counts: tuple[int, ...] = (0,) * len(Branch)


def _tally(layer: LayerRecord, forward: ForwardRecord) -> _Tally:
    if layer.blocks is None or layer.cost is None or layer.branch is None:
        return _Tally()
    counts = torch.bincount(layer.branch.flatten().cpu().long(), minlength=len(Branch))
    return _Tally(
        blocks=int(layer.blocks.sum()),
        cost=float(layer.cost.double().sum()),
        causal=forward.causal_blocks * layer.blocks.numel(),
        counts=tuple(counts.tolist()),
    )


def _totals(tallies: Iterable[_Tally]) -> Totals:
    tallies = list(tallies)
    causal = sum(tally.causal for tally in tallies)
    counts = [sum(tally.counts[branch] for tally in tallies) for branch in Branch]
    return Totals(
        density=sum(tally.blocks for tally in tallies) / causal if causal else None,
        estimation=sum(tally.cost for tally in tallies) / causal if causal else None,
        branches=tuple(
            BranchCount(name=branch.name.lower(), count=count)
            for branch, count in zip(Branch, counts, strict=True)
            if count
        ),
    )


def _summarise(record: ForwardRecord, tallies: list[_Tally]) -> ForwardSummary:
    return ForwardSummary(
        q_len=record.q_len,
        kv_len=record.kv_len,
        path=record.path,
        reason=record.reason,
        totals=_totals(tallies),
        layers=tuple(
            LayerSummary(
                layer=layer.layer, dense_reason=layer.dense_reason, totals=_totals([tally])
            )
            for layer, tally in zip(record.layers, tallies, strict=True)
        ),
    )


def _dense_forwards(forwards: list[ForwardRecord]) -> tuple[DenseForwards, ...]:
    dense = [record for record in forwards if record.path == "dense"]
    reasons = dict.fromkeys(record.reason for record in dense)
    return tuple(
        DenseForwards(
            reason=reason,
            forwards=sum(record.reason == reason for record in dense),
            tokens=sum(record.q_len for record in dense if record.reason == reason),
        )
        for reason in reasons
    )
