"""What differs between two profiles, how far it may, and what went too far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from sp_runtime.errors import UsageError
from sp_runtime.profile import HeadRef

Part = Literal["model", "prompts", "settings", "points", "patterns"]
PARTS: tuple[str, ...] = get_args(Part)


@dataclass(frozen=True, kw_only=True, slots=True)
class DiffThresholds:
    """How far B may be from A. The defaults allow no change of what enters the identity.

    min_ari: least adjusted Rand index of the two clusterings, in [-1, 1].
    max_moved, max_anchor_changes, max_enabled_changes: heads in another cluster, clusters with
        another anchor, heads that share in one profile only.
    max_plan_changes: share of heads whose plan differs, in [0, 1].
    max_cost_change: of the plan's mean predicted cost. max_density_change: mean over heads of the
        absolute change of the measured density. Both in blocks over causal blocks.
    ignore: parts whose changes are shown and not held against B.
    """

    min_ari: float = 1.0
    max_moved: int = 0
    max_anchor_changes: int = 0
    max_enabled_changes: int = 0
    max_plan_changes: float = 0.0
    max_cost_change: float = 0.01
    max_density_change: float = 0.01
    ignore: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _within("min_ari", self.min_ari, -1, 1)
        _within("max_plan_changes", self.max_plan_changes, 0, 1)
        for name in ("max_moved", "max_anchor_changes", "max_enabled_changes"):
            _within(name, getattr(self, name), 0, 1 << 30)
        for name in ("max_cost_change", "max_density_change"):
            _within(name, getattr(self, name), 0, 64)
        for part in self.ignore:
            if part not in PARTS:
                raise UsageError(f"unknown part {part!r}", hint=f"one of {', '.join(PARTS)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FieldChange:
    """One field, printable on both sides; "-" where a side has none."""

    field: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadChange:
    """One head, printable on both sides; "-" or "no plan" where a side has nothing."""

    head: HeadRef
    before: str
    after: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterDiff:
    """Clusters are paired so that the most heads stay.

    ari: adjusted Rand index over all heads, each unclustered head a class of its own.
    moved: heads that are not in the partner of their cluster. anchors: of the paired clusters.
    enabled: heads that are in an enabled cluster on one side only.
    """

    ari: float
    clusters: tuple[int, int]
    clustered: tuple[int, int]
    moved: tuple[HeadChange, ...]
    anchors: tuple[FieldChange, ...]
    enabled: tuple[HeadChange, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanDiff:
    """cost, recall: mean over heads as predicted, (A, B). share: changed heads over all heads.

    floor: where the promised recall floors differ, None where they agree.
    """

    changed: tuple[HeadChange, ...]
    share: float
    cost: tuple[float, float]
    recall: tuple[float, float]
    floor: FieldChange | None


@dataclass(frozen=True, kw_only=True, slots=True)
class DensityDiff:
    """Density of the gamma-masks: mean over heads (A, B), mean and largest absolute change."""

    mean: tuple[float, float]
    mean_change: float
    max_change: float
    at: HeadRef


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """A measure that went too far; `limit` and `found` are printable."""

    measure: str
    limit: str
    found: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileDiff:
    """A against B. clusters, plan, density: None where they cannot be compared (notes say why)."""

    ids: tuple[str, str]
    model: tuple[FieldChange, ...]
    prompts: tuple[FieldChange, ...]
    settings: tuple[FieldChange, ...]
    points: tuple[FieldChange, ...]
    patterns: tuple[HeadChange, ...]
    clusters: ClusterDiff | None
    plan: PlanDiff | None
    density: DensityDiff | None
    notes: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def identical(self) -> bool:
        """Whether the two say the same: equal ids."""
        return self.ids[0] == self.ids[1]


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UsageError(f"{name} {value} is not in [{low}, {high}]")
