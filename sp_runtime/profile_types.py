"""The profile of one model, as frozen dataclasses; `sp_runtime.profile` reads and writes them.

Ratios lie in [0, 1]; costs and densities count blocks in units of a head's causal blocks, so a
cost that includes estimation may pass 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from sp_runtime.errors import UsageError
from sp_runtime.fingerprint import ModelFingerprint
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.strict_json import OPTIONAL

SCHEMA = "sp.profile"
SCHEMA_VERSION = "1.0"
DEFAULT_POINT = "default"

Assignment = Literal["dense", "vertical_slash", "query_aware", "streaming", "sampled", "borrow"]
ASSIGNMENTS: tuple[str, ...] = get_args(Assignment)
ShapeKind = Literal["a_shape", "vertical_slash", "block_sparse"]
SHAPE_KINDS: tuple[str, ...] = get_args(ShapeKind)
LENDING: tuple[str, ...] = ("dense", "sampled")
"""Assignments whose exact or sampled block mass another head can borrow."""


class HeadRef(NamedTuple):
    """One query head of one layer, both counted from 0."""

    layer: int
    head: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Producer:
    """The program that wrote the profile; no part of its identity."""

    name: str
    version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptRecord:
    """A calibration prompt without its text. task: the built-in task, "" for the user's own."""

    sha256: str
    tokens: int
    task: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """How the model was measured.

    gamma: attention mass that the recorded block masks cover, in (0, 1].
    block_size: in tokens. dtype: of the model, such as "bfloat16".
    sample_stride: every sample_stride-th query made the sampled masks.
    versions: (package, version) pairs; device: such as "cpu". Neither is part of the identity.
    quarantined: further prompts that were left out because their attention was not finite.
    trust_remote_code: the model ran Python code that its repository ships.
    local_blocks: key blocks before the diagonal that the measured masks of block mass always keep.
    row_slack: as in `OperatingPoint`, of the measured sampled masks.
    """

    prompts: tuple[PromptRecord, ...]
    gamma: float
    block_size: int
    dtype: str
    seed: int
    chat_template: bool
    sample_stride: int
    versions: tuple[tuple[str, str], ...] = ()
    device: str = ""
    quarantined: int = field(default=0, metadata=OPTIONAL)
    trust_remote_code: bool = field(default=False, metadata=OPTIONAL)
    local_blocks: int = field(default=0, metadata=OPTIONAL)
    row_slack: float = field(default=1.0, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterSettings:
    """How the clusters were made.

    threshold: distance 1 - Jaccard at which merging stops, in [0, 1]. enable: the policy that
    chose the enabled clusters, such as "evidence", "all" or "top:4".
    """

    linkage: str
    threshold: float
    min_cluster_size: int
    enable: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterEvidence:
    """Why a cluster is enabled or not, measured on the calibration prompts.

    jaccard_mean, jaccard_core_mean: over pairs of members; core leaves the forced blocks out.
    recall_mean, recall_p10: attention mass of the borrowers inside the masks that they borrow.
    lender_density, vertical_slash_density: what the borrowers compute with and without sharing.
    saving: blocks saved by sharing over causal blocks, negative where sharing costs more.
    """

    jaccard_mean: float
    jaccard_core_mean: float
    recall_mean: float
    recall_p10: float
    lender_density: float
    vertical_slash_density: float
    saving: float
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Cluster:
    """Heads with alike block masks, ascending. anchor: the medoid of those that can lend."""

    id: int
    members: tuple[HeadRef, ...]
    anchor: HeadRef | None
    enabled: bool
    evidence: ClusterEvidence


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadPlan:
    """What one head computes under rule plan.

    gamma: threshold of its mask, in (0, 1]; 1 where the assignment has none.
    window: tokens, streaming only. stride: in queries, sampled only. lender: borrow only, a dense
    or sampled head of an earlier layer, or a sampled one of the same layer.
    recall, cost: measured on the calibration prompts; cost includes estimation.
    """

    layer: int
    head: int
    assignment: Assignment
    gamma: float
    window: int | None = None
    stride: int | None = None
    lender: HeadRef | None = None
    recall: float
    cost: float

    @property
    def ref(self) -> HeadRef:
        return HeadRef(self.layer, self.head)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Every head of every full-attention layer once, in (layer, head) order.

    heads is empty where nothing was measured, as in an imported profile: rule plan is refused.
    recall_floor: of every head. target_recall: mean over heads that the plan was chosen for, in
    (0, 1], or None. min_length: calibration prompts under so many tokens were left out, or None.
    """

    recall_floor: float
    heads: tuple[HeadPlan, ...]
    target_recall: float | None = field(default=None, metadata=OPTIONAL)
    min_length: int | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedPlan:
    """Another plan of the profile, which an operating point names; never an empty one."""

    name: str
    plan: Plan


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadShape:
    """The fixed pattern of one head under method minference; sizes in tokens.

    vertical: columns of vertical_slash, sink of a_shape, key tokens a query block of block_sparse.
    slash: diagonals of vertical_slash, window of a_shape, 0 for block_sparse.
    score: of the search: the attention mass inside the pattern; not part of the identity.
    """

    layer: int
    head: int
    kind: ShapeKind
    vertical: int
    slash: int
    score: float

    @property
    def ref(self) -> HeadRef:
        return HeadRef(self.layer, self.head)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeTable:
    """Every full-attention head once, in (layer, head) order. source: where they come from."""

    source: str
    heads: tuple[HeadShape, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadWindow:
    """The local window of one head under method moa: alpha + beta * N tokens at N tokens.

    alpha: in tokens. beta: in [0, 1], in steps of 0.001. mass: attention mass inside the window and
    the sink, mean over the calibrated lengths; not part of the identity.
    """

    layer: int
    head: int
    alpha: int
    beta: float
    mass: float

    @property
    def ref(self) -> HeadRef:
        return HeadRef(self.layer, self.head)


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowTable:
    """Every full-attention head once, in (layer, head) order.

    source: where the windows come from. density: the budget that they were chosen under, mean over
    heads, in (0, 1]. sink: first tokens that every head keeps.
    """

    source: str
    density: float
    sink: int
    heads: tuple[HeadWindow, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadPatterns:
    """Patterns of single heads for the methods that the plan does not speak of."""

    minference: ShapeTable | None = None
    moa: WindowTable | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedPoint:
    """An operating point that the profile ships."""

    name: str
    point: OperatingPoint


@dataclass(frozen=True, kw_only=True, slots=True)
class FileRecord:
    """A file beside profile.json; its bytes are refused where the hash differs."""

    name: str
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Which heads of one model look alike, what stands in for them, and how to run it.

    profile_id: `compute_profile_id` of the rest; "" until it is filled in.
    clustering: None where the clusters were not made here (imported ones).
    head_patterns: of methods minference and moa; None where neither was searched or imported.
    plans: further plans beside `plan`, for points that name them.
    """

    schema: str = SCHEMA
    schema_version: str = SCHEMA_VERSION
    profile_id: str = ""
    producer: Producer
    model: ModelFingerprint
    model_name: str
    calibration: Calibration
    clustering: ClusterSettings | None = None
    clusters: tuple[Cluster, ...]
    plan: Plan
    points: tuple[NamedPoint, ...]
    files: tuple[FileRecord, ...] = field(default=())
    head_patterns: HeadPatterns | None = field(default=None, metadata=OPTIONAL)
    plans: tuple[NamedPlan, ...] = field(default=(), metadata=OPTIONAL)

    def point(self, name: str = DEFAULT_POINT) -> OperatingPoint:
        """The operating point of that name; UsageError where there is none."""
        for named in self.points:
            if named.name == name:
                return named.point
        known = ", ".join(named.name for named in self.points)
        raise UsageError(f"the profile has no operating point {name!r}", hint=f"it has {known}")

    def plan_of(self, point: OperatingPoint) -> Plan:
        """The plan that rule plan executes at `point`; UsageError where there is none."""
        if not point.plan:
            return self.plan
        for named in self.plans:
            if named.name == point.plan:
                return named.plan
        known = ", ".join(named.name for named in self.plans)
        raise UsageError(
            f"the profile has no plan {point.plan!r}",
            hint=f"it has {known}" if known else "it has its own plan only: leave the name out",
        )

    def clusters_by_head(self) -> dict[HeadRef, Cluster]:
        """The cluster of each clustered head."""
        return {member: cluster for cluster in self.clusters for member in cluster.members}

    def plan_by_head(self) -> dict[HeadRef, HeadPlan]:
        """The plan of each full-attention head."""
        return {head.ref: head for head in self.plan.heads}


def full_attention_heads(model: ModelFingerprint) -> tuple[HeadRef, ...]:
    """The heads that a profile speaks of, in (layer, head) order; its tables count in it."""
    return tuple(
        HeadRef(layer, head)
        for layer, kind in enumerate(model.layer_types)
        if kind == "full_attention"
        for head in range(model.num_heads)
    )
