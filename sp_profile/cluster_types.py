"""What goes into the making of a profile, and the report that comes out beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from sp_profile.evidence import EnablePolicy
from sp_profile.plan_kinds import KindPrices
from sp_profile.plan_types import PlanSummary
from sp_runtime.errors import UsageError
from sp_runtime.profile import Profile

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all), first with 0 done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """How a profile is made from a run.

    distance: 1 - Jaccard at which merging stops, in [0, 1]. min_cluster_size: smaller ones are
    noise. enable: which clusters share under the published rules. lender: whose mask the evidence
    is about; the published rules lend from the first head in layer order.
    recall_target: mean attention mass that the members of an enabled cluster keep.
    target_recall, recall_floor, tail_gain, kind_prices, without, min_length, lending, same_layer:
    of the per-head plan, as in `PlanSettings`. drift_quantile: the drift guard's threshold as a
    quantile of the plan's borrowings, plus drift_margin; None leaves the guard off.
    delta_quantile, tau_quantile: the published thresholds as quantiles of this calibration (of
    uniform_jsd over heads; of a_hat_jsd between lenders and members); None: the published numbers.
    settings: what the command was told, as TOML, kept beside the profile.
    min_tokens: shorter prompts are prefilled densely. device: of the similarity's matrix products.
    """

    distance: float = 0.5
    min_cluster_size: int = 5
    enable: EnablePolicy = field(default_factory=EnablePolicy)
    lender: Literal["first", "anchor"] = "first"
    recall_target: float = 0.9
    target_recall: float | None = None
    recall_floor: float | None = 0.9
    tail_gain: float = 0.0
    kind_prices: KindPrices = field(default_factory=KindPrices)
    without: tuple[str, ...] = ()
    min_length: int = 0
    lending: bool = True
    same_layer: bool = True
    drift_quantile: float | None = None
    drift_margin: float = 0.02
    delta_quantile: float | None = None
    tau_quantile: float | None = None
    min_tokens: int = 1024
    device: str = "cpu"
    settings: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.min_cluster_size < 2:
            raise UsageError(f"min_cluster_size {self.min_cluster_size} is under 2", hint="try 5")
        if self.min_tokens < 1:
            raise UsageError(f"min_tokens {self.min_tokens} is under 1", hint="in tokens")
        for name in (
            "distance",
            "drift_quantile",
            "delta_quantile",
            "tau_quantile",
            "drift_margin",
        ):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UsageError(f"{name} {value} is not in [0, 1]")
        for name in ("recall_target", "recall_floor", "target_recall"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UsageError(f"{name} {value} is not in (0, 1]", hint="try 0.9")


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterReport:
    """What came of a run, beside the profile itself.

    prompts: that entered; short: under 16 block rows, left out. task_correlation,
    length_correlation: lowest correlation of the similarity between two tasks or length classes.
    clustered: heads in a cluster. notes: sentences for people.
    """

    prompts: int
    short: int
    task_correlation: float | None
    length_correlation: float | None
    clustered: int
    clusters: int
    enabled: int
    plan: PlanSummary
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltProfile:
    """A published profile and the report on how it came about."""

    profile: Profile
    report: ClusterReport
