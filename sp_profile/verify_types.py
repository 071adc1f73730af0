"""What `sp-profile verify` checks, what it asks for, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, fields

from sp_profile.tasks import TASKS
from sp_runtime.errors import UsageError
from sp_runtime.profile import HeadRef


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyLimits:
    """From where on a profile falls short on the model.

    max_kl: KL(dense || sparse) in nats, mean over positions and prompts. min_top1: share of
        positions with the same most likely token, mean over prompts.
    max_answers_lost: share of the prompts that dense attention answers and sparse does not.
    recall_slack: how far a head's mean recall may lie under the plan's floor on prompts that the
        plan was not chosen on. max_heads_under: share of heads that may lie lower still.
    """

    max_kl: float = 0.25
    min_top1: float = 0.8
    max_answers_lost: float = 0.1
    recall_slack: float = 0.05
    max_heads_under: float = 0.02

    def __post_init__(self) -> None:
        for field in fields(self):
            high = float("inf") if field.name == "max_kl" else 1.0
            value = getattr(self, field.name)
            if not 0 <= value <= high:
                raise UsageError(f"{field.name} {value} is not in [0, {high:g}]")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCheckConfig:
    """The held-out prompts, and how they are run.

    lengths: tokens; empty: the longest prompt of the calibration. seed: of the prompts; whatever
    it is, they share no key with calibration prompts. dtype: None: the calibration's.
    """

    model: str
    revision: str | None = None
    trust_remote_code: bool = False
    tasks: tuple[str, ...] = TASKS
    lengths: tuple[int, ...] = ()
    samples: int = 1
    seed: int = 1
    point: str | None = None
    dtype: str | None = None
    device: str = "auto"
    kernels: str = "auto"
    allow_weights_mismatch: bool = False

    def __post_init__(self) -> None:
        if self.samples < 1 or not self.tasks:
            raise UsageError("there is nothing to run", hint="at least one task and one sample")


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One thing that was checked: detail says what was found, in a few words."""

    name: str
    passed: bool
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptCheck:
    """One held-out prompt. right: whether every answer is in the generated text."""

    prompt: str
    task: str
    tokens: int
    path: str
    density: float
    kl_mean: float
    kl_last: float
    top1: float
    dense_right: bool
    sparse_right: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadRecall:
    """Attention mass of one head that its mask keeps, mean over block rows and prompts."""

    head: HeadRef
    assignment: str
    promised: float
    recall: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCheck:
    """Held-out prompts on the model. recall: of every head, in order; empty without a plan."""

    point: str
    prompts: tuple[PromptCheck, ...]
    recall_floor: float | None
    recall: tuple[HeadRecall, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """Everything that was checked, and the part of it that fell short."""

    profile_id: str
    signed: bool | None
    checks: tuple[Check, ...]
    model: ModelCheck | None

    @property
    def findings(self) -> tuple[Check, ...]:
        """The checks that fell short."""
        return tuple(check for check in self.checks if not check.passed)
