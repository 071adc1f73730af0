"""What a tuning asks for, the curve that it chooses from, and what it chose."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from sp_profile.eval.statistics import Estimate
from sp_profile.plan_kinds import KindPrices
from sp_profile.run_config import Dtype
from sp_runtime.errors import UsageError

GoalKind = Literal["target_recall", "max_loss", "target_density"]
Origin = Literal["given", "file", "measured", "profile"]
FAST, BALANCED, SAFE = "fast", "balanced", "safe"
TUNED = (FAST, BALANCED, SAFE)

Progress = Callable[[str, int, int], None]
"""Called with what is being done, units done and units in all."""

_ANCHOR = 0.95  # of the ladder, where the goal names no recall
_RUNGS = 4  # on either side of the anchor
_LEAST, _MOST = 0.5, 0.999


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """What the balanced point has to reach.

    value: target_recall: mean attention mass kept, in (0, 1); target_density: largest mean cost,
    estimates included, over causal blocks, in (0, 1]; max_loss: largest mean loss against dense, in
    points of 100.
    """

    kind: GoalKind
    value: float

    def __post_init__(self) -> None:
        if self.kind not in get_args(GoalKind):
            raise UsageError(f"unknown goal {self.kind!r}", hint=", ".join(get_args(GoalKind)))
        low, high = {"target_recall": (_LEAST, _MOST), "target_density": (0.0, 1.0)}.get(
            self.kind, (0.0, 100.0)
        )
        at_low = self.value == low and self.kind == "target_density"
        if not low <= self.value <= high or at_low or not math.isfinite(self.value):
            raise UsageError(f"{self.kind} {self.value:g} is not in [{low:g}, {high:g}]")

    @property
    def rungs_per_octave(self) -> int:
        """Rungs of the ladder in which the mass missed doubles; more where a density is met."""
        return 4 if self.kind == "target_density" else 2

    def ladder(self) -> tuple[float, ...]:
        """Recall targets, ascending: the mass missed grows in equal ratios.

        A target recall stands in the middle, two of its octaves on either side.
        """
        missed = 1 - (self.value if self.kind == "target_recall" else _ANCHOR)
        step = self.rungs_per_octave
        rungs = range(-_RUNGS * step // 2, _RUNGS * step // 2 + 1)
        found = {round(1 - missed * 2 ** (-rung / step), 4) for rung in rungs}
        return tuple(sorted(target for target in found if _LEAST <= target <= _MOST))


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """How candidates are evaluated, paired with dense: tasks and methods as `sp-run eval` has them.

    samples: prompts of each task and length. seed: of the prompts; none of them may be a
    calibration prompt. folder: of the evaluation, in which an interrupted one is resumed.
    """

    model: str
    folder: Path
    tasks: str = "retrieval"
    samples: int = 8
    seed: int = 1
    revision: str | None = None
    trust_remote_code: bool = False
    dtype: Dtype = "float32"
    device: str | None = None
    kernels: str = "auto"
    chat_template: bool = False
    workers: int = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneConfig:
    """How a profile is tuned.

    lengths: prompts that the points are meant for, in tokens; (): those of the run that sparse
    attention pays at. min_tokens: where it begins to; origin: who says so. settings: what the
    command was told, as TOML. kind_prices, without: of the plans, as in `PlanSettings`.
    """

    goal: Goal
    min_tokens: int
    origin: Origin
    lengths: tuple[int, ...] = ()
    trial: Trial | None = None
    kind_prices: KindPrices = field(default_factory=KindPrices)
    without: tuple[str, ...] = ()
    settings: str | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.goal.kind == "max_loss" and self.trial is None:
            raise UsageError(
                "a loss is measured on a model", hint="pass --model, or --target-recall"
            )
        for length in self.lengths:
            if length < self.min_tokens:
                raise UsageError(
                    f"length {length} is under {self.min_tokens} tokens, where prompts are "
                    "computed densely",
                    hint="leave it out",
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A candidate in the evaluation. loss: dense's score minus its own, in points of 100, mean over
    tasks and lengths; density, estimation: blocks over causal blocks."""

    loss: Estimate
    density: float
    estimation: float
    prompts: int

    @property
    def cost(self) -> float:
        return self.density + self.estimation


@dataclass(frozen=True, kw_only=True, slots=True)
class CurvePoint:
    """One plan on the curve.

    target: mean recall it was made for. cost, recall, recall_p10: on all calibration prompts of the
    lengths; held_out_*: the choice made on half of them, on the other half; None where there are
    too few. vertical_slash_cost: of vertical-slash at the same mean recall; ceiling_share: of what
    the heads' own exact masks would save over it, the share that the plan saves; None where the
    run cannot tell. names: of the points made of it. kinds: of estimate, that a layer computes on
    average.
    """

    target: float
    cost: float
    recall: float
    recall_p10: float
    held_out_cost: float | None
    held_out_recall: float | None
    vertical_slash_cost: float | None
    ceiling_share: float | None
    measured: Measured | None
    names: tuple[str, ...] = ()
    kinds: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TuneReport:
    """What was chosen and from what; curve ascending by target. prompts: of the run that count."""

    goal: Goal
    min_tokens: int
    origin: Origin
    lengths: tuple[int, ...]
    prompts: int
    curve: tuple[CurvePoint, ...]
    notes: tuple[str, ...]
