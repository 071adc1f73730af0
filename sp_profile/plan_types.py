"""How a plan is chosen, and what is said about it."""

from __future__ import annotations

from dataclasses import dataclass, field

from sp_profile.plan_kinds import ESTIMATED, KindPrices
from sp_runtime.errors import UsageError
from sp_runtime.profile import Plan

TARGETS = (0.80, 0.85, 0.90, 0.93, 0.95, 0.97, 0.98)
"""Mean recalls of the curve that a plan is chosen from."""
_SLACK = 0.1
FORBIDDABLE = (*ESTIMATED, "streaming")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSettings:
    """What a plan must keep, and what it may do.

    target_recall: mean over heads and prompts, in (0, 1]; None: only the floor counts.
    recall_floor: mean over the prompts of every head; None: 0.1 under the target.
    task_slack: how far under the floor the mean of one task may lie.
    tail_gain: how far the tenth percentile over heads and prompts is to lie above that of
        vertical-slash at the same mean; 0: no matter where.
    kind_prices: of the kinds of estimate that a layer computes. without: assignments that no head
        gets, of vertical_slash, query_aware, sampled and streaming.
    min_length: shorter prompts, in tokens, are left out. lending: heads may borrow. same_layer:
        from sampled heads of their own layer as well. guarded: the drift guard is on, so lenders
        and borrowers pay a last-row estimate.
    stability: share of bootstrap samples of the prompts in which a borrowing must pay.
    """

    target_recall: float | None = 0.95
    recall_floor: float | None = None
    task_slack: float = 0.05
    tail_gain: float = 0.03
    kind_prices: KindPrices = field(default_factory=KindPrices)
    without: tuple[str, ...] = ()
    min_length: int = 0
    lending: bool = True
    same_layer: bool = True
    guarded: bool = False
    stability: float = 0.8

    def __post_init__(self) -> None:
        if self.target_recall is None and self.recall_floor is None:
            raise UsageError("a plan needs a target recall or a recall floor", hint="try 0.95")
        for name in ("target_recall", "recall_floor"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 1:
                raise UsageError(f"{name} {value} is not in (0, 1]", hint="try 0.95")
        for name in ("task_slack", "tail_gain", "stability"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} {getattr(self, name)} is not in [0, 1]")
        for name in self.without:
            if name not in FORBIDDABLE:
                raise UsageError(f"heads cannot be kept from {name!r}", hint=", ".join(FORBIDDABLE))
        if self.min_length < 0:
            raise UsageError(f"min_length {self.min_length} is negative", hint="in tokens")

    @property
    def floor(self) -> float:
        """The floor of every head, given or derived."""
        if self.recall_floor is not None:
            return self.recall_floor
        assert self.target_recall is not None
        return max(0.0, round(self.target_recall - _SLACK, 6))


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a plan or method costs and keeps: means over heads and prompts, and the tenth percentile
    of recall over both."""

    prompts: int
    cost: float
    recall: float
    recall_p10: float


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedOutcome:
    """An outcome on some prompts or of some method, by name."""

    name: str
    outcome: Outcome


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What another method costs at the plan's mean recall, on the same prompts.

    recall_p10: of the method there. cost is None where none of its settings reaches that recall.
    """

    method: str
    cost: float | None
    recall_p10: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSummary:
    """What a plan promises.

    target: the mean recall asked for; None where only a floor was. cost, recall: means over heads
    and the prompts that it was chosen on; recall_p10: tenth percentile over both. held_out: of
    plans chosen on one half of the prompts, on the other half, both ways; None where some task has
    a single prompt. left_out: of plans chosen without a task, on that task. lengths: by class.
    cost_interval, recall_interval: 5 % and 95 % over bootstrap samples of the prompts.
    vertical_slash_*: vertical-slash chosen per head under the same rules. references: methods with
    one setting for all heads, at the plan's mean recall, and uniform_vertical_slash_cost of them.
    ceiling_share: of the blocks that the heads' own exact masks save there over vertical-slash, the
    share that the plan saves; None where the run does not reach it.
    counts: heads by assignment. kinds: layers by the kind of estimate that they compute, and
    kinds_per_layer of these. lenders: heads that lend. dropped: borrowings left out as unstable.
    price, tail_price: blocks paid for a unit of recall lost, and for a prompt of a head under the
    wanted tenth percentile.
    notes: sentences for people.
    """

    target: float | None
    prompts: int
    cost: float
    recall: float
    recall_p10: float
    held_out: Outcome | None
    left_out: tuple[NamedOutcome, ...]
    lengths: tuple[NamedOutcome, ...]
    cost_interval: tuple[float, float]
    recall_interval: tuple[float, float]
    vertical_slash_cost: float
    vertical_slash_recall: float
    uniform_vertical_slash_cost: float | None
    references: tuple[Reference, ...]
    ceiling_share: float | None
    counts: tuple[tuple[str, int], ...]
    kinds: tuple[tuple[str, int], ...]
    kinds_per_layer: float
    lenders: int
    dropped: int
    price: float
    tail_price: float
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedPoint:
    """One plan and what it promises."""

    plan: Plan
    summary: PlanSummary

    @property
    def target(self) -> float | None:
        """The mean recall asked for; None where only a floor was."""
        return self.summary.target

    @property
    def outcome(self) -> Outcome:
        """On the prompts that it was chosen on."""
        found = self.summary
        return Outcome(
            prompts=found.prompts,
            cost=found.cost,
            recall=found.recall,
            recall_p10=found.recall_p10,
        )

    @property
    def held_out(self) -> Outcome | None:
        """Of plans chosen on one half of the prompts, on the other half, both ways."""
        return self.summary.held_out

    @property
    def ceiling_share(self) -> float | None:
        """Of the saving of the heads' own exact masks over vertical-slash, the plan's share."""
        return self.summary.ceiling_share

    def reference(self, method: str) -> Reference | None:
        """Another method at the plan's mean recall, if the run has measured it."""
        return next((one for one in self.summary.references if one.method == method), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanCurve:
    """The plans of one run by target, ascending; notes: sentences for people."""

    model: str
    block_size: int
    min_length: int
    prompts: int
    points: tuple[PlannedPoint, ...]
    notes: tuple[str, ...]
