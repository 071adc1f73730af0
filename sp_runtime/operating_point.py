"""Every number that steers a sparse prefill, in one frozen configuration."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from sp_runtime.errors import UsageError
from sp_runtime.strict_json import OPTIONAL

Method = Literal[
    "dense",
    "streaming",
    "lm_infinite",
    "vertical_slash",
    "minference",
    "flexprefill",
    "infllm",
    "hip",
    "moa",
    "xattention",
    "sampled",
    "share",
]
Rule = Literal["plan", "paper", "release"]
SlashCover = Literal["both", "one"]

METHODS: tuple[str, ...] = get_args(Method)
RULES: tuple[str, ...] = get_args(Rule)
PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
"""Names inside a profile: of its points, plans and files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPoint:
    """The settings of one prefill method. Token counts are in tokens, not blocks.

    gamma: cumulative attention threshold, in (0, 1].
    tau: largest sqrtJSD (nats) at which a pattern is shared; 0 switches sharing off. Method
        xattention: cumulative threshold of a block row, in (0, 1].
    delta: sqrtJSD to uniform from which a head is highly sparse (rule paper); 1.01 switches it off.
    kappa: sqrtJSD under which a head is query-aware (flexprefill, whose tau it is; rule release).
    phi: largest share of the pivot's mass that its own vertical-slash may cover (rule release).
    min_budget, max_budget: bounds on the columns and diagonals of vertical-slash; None: no bound.
    min_tokens: sequences with fewer keys are computed densely.
    slash_cover: `both` block diagonals that a token diagonal touches, or `one` (parity with
        FlexPrefill's and SharePrefill's code).
    sink, window: first tokens and local tokens of streaming, lm_infinite and infllm; sink also of
        the plan's streaming heads.
    stride: every stride-th query is sampled by `sampled`; the side of the cells of `xattention`, a
        power of two.
    drift: rule plan: largest sqrtJSD between the last-row estimates of borrower and lender at
        which the borrower takes its lender's mask as it is; None switches the guard off.
    drift_widen: rule plan: beyond `drift` the mask is widened by the borrower's own vertical-slash
        at min_budget, and beyond this many times `drift` it is given up for vertical-slash at the
        borrower's gamma; 1 never widens.
    dense_layers: number of first layers computed densely.
    top_k: tokens of the key blocks that a query block chooses (infllm, hip), in whole blocks.
    last_rows: number of last query block rows of each forward that every head computes densely,
        and one more where the last one holds fewer than half a block; what a question at the end
        looks up stays exact (TriangleMix, arXiv 2507.21526).
    local_blocks: key blocks before the diagonal that masks of block mass (sampled, lent ones of a
        plan, xattention) always keep, so that what spans two blocks is not cut.
    row_slack: masks of sampled block mass keep the fewest blocks of a head's whole map with which
        it misses 1 - gamma of its mass, while no block row misses more than row_slack times that;
        1: every row reaches gamma by itself.
    plan: rule plan: name of one of the profile's `plans`; "" is its own plan.
    """

    method: Method = "share"
    rule: Rule = "plan"
    gamma: float = 0.9
    tau: float = 0.2
    delta: float = 0.3
    kappa: float = 0.1
    phi: float = 0.9
    min_budget: int = 1024
    max_budget: int | None = None
    min_tokens: int = 1024
    slash_cover: SlashCover = "both"
    sink: int = 128
    window: int = 1024
    stride: int = 8
    drift: float | None = None
    dense_layers: int = 0
    top_k: int = field(default=2048, metadata=OPTIONAL)
    last_rows: int = field(default=0, metadata=OPTIONAL)
    local_blocks: int = field(default=0, metadata=OPTIONAL)
    row_slack: float = field(default=1.0, metadata=OPTIONAL)
    drift_widen: float = field(default=2.0, metadata=OPTIONAL)
    plan: str = field(default="", metadata=OPTIONAL)

    def __post_init__(self) -> None:
        _require(self.method in METHODS, f"unknown method {self.method!r}", ", ".join(METHODS))
        _require(self.rule in RULES, f"unknown rule {self.rule!r}", ", ".join(RULES))
        _require(0 < self.gamma <= 1, f"gamma {self.gamma} is not in (0, 1]", "try 0.9")
        _require(0 <= self.tau <= 2, f"tau {self.tau} is not in [0, 2]", "try 0.2")
        _require(0 <= self.delta <= 2, f"delta {self.delta} is not in [0, 2]", "try 0.3")
        _require(0 <= self.kappa <= 2, f"kappa {self.kappa} is not in [0, 2]", "try 0.1")
        _require(0 < self.phi <= 1, f"phi {self.phi} is not in (0, 1]", "try 0.9")
        _require(self.min_budget >= 1, f"min_budget {self.min_budget} is under 1", "in tokens")
        _require(
            self.max_budget is None or self.max_budget >= self.min_budget,
            f"max_budget {self.max_budget} is under min_budget {self.min_budget}",
            "leave it out for no bound",
        )
        _require(self.min_tokens >= 1, f"min_tokens {self.min_tokens} is under 1", "in tokens")
        _require(self.slash_cover in ("both", "one"), "slash_cover is both or one", "try both")
        _require(self.sink >= 0, f"sink {self.sink} is negative", "in tokens")
        _require(self.window >= 1, f"window {self.window} is under 1", "in tokens")
        _require(1 <= self.stride <= 64, f"stride {self.stride} is not in [1, 64]", "try 8")
        _require(
            self.drift is None or 0 <= self.drift <= 2,
            f"drift {self.drift} is not in [0, 2]",
            "leave it out to switch the guard off",
        )
        _require(self.dense_layers >= 0, f"dense_layers {self.dense_layers} is negative", "try 0")
        _require(self.top_k >= 1, f"top_k {self.top_k} is under 1", "in tokens")
        _require(self.last_rows >= 0, f"last_rows {self.last_rows} is negative", "try 1")
        _require(self.local_blocks >= 0, f"local_blocks {self.local_blocks} is negative", "try 1")
        _require(
            1 <= self.row_slack <= 64, f"row_slack {self.row_slack} is not in [1, 64]", "try 2"
        )
        _require(
            1 <= self.drift_widen <= 64,
            f"drift_widen {self.drift_widen} is not in [1, 64]",
            "try 2",
        )
        _require(
            not self.plan or PLAIN_NAME.fullmatch(self.plan) is not None,
            f"plan {self.plan!r} is no plain name",
            "leave it out for the profile's own plan",
        )
        if self.method == "xattention":
            self._check_xattention()

    def _check_xattention(self) -> None:
        _require(0 < self.tau <= 1, f"tau {self.tau} is not in (0, 1]", "try 0.9")
        _require(
            self.stride & (self.stride - 1) == 0,
            f"stride {self.stride} does not divide a block",
            "try 8 or 16",
        )


def default_point(method: Method, rule: Rule = "plan") -> OperatingPoint:
    """The published constants of a method and rule; the sources are in the patterns' docstrings."""
    if method == "share" and rule == "release":
        return OperatingPoint(method=method, rule=rule, tau=0.5)
    if method == "lm_infinite":
        return OperatingPoint(method=method, rule=rule, sink=100, window=4096)
    if method == "flexprefill":
        return OperatingPoint(method=method, rule=rule, gamma=0.95)
    if method == "infllm":
        return OperatingPoint(method=method, rule=rule, sink=128, window=4096, top_k=2048)
    if method == "hip":
        return OperatingPoint(method=method, rule=rule, top_k=512)
    if method == "xattention":
        return OperatingPoint(method=method, rule=rule, tau=0.9, stride=16)
    # Masks of block mass cut what spans two blocks unless the block before the diagonal stays, and
    # from a question what it asks for, whose mass is small, unless the last rows are dense. The
    # fewest blocks of a whole map are 6 to 8 % fewer than those of its rows at equal mean mass.
    ours = OperatingPoint(method=method, rule=rule, local_blocks=1, last_rows=1, row_slack=2.0)
    if method == "sampled":
        return replace(ours, stride=16)
    if method == "share" and rule == "plan":
        return ours
    return OperatingPoint(method=method, rule=rule)


def _require(condition: bool, message: str, hint: str) -> None:
    if not condition:
        raise UsageError(message, hint=hint)
