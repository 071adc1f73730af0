"""What a profile must hold beyond its types: ranges, and the references between its parts."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable
from typing import TypeVar

from sp_runtime.errors import CorruptArtefactError
from sp_runtime.fingerprint import ModelFingerprint
from sp_runtime.operating_point import PLAIN_NAME
from sp_runtime.profile_types import (
    DEFAULT_POINT,
    LENDING,
    Calibration,
    Cluster,
    ClusterEvidence,
    ClusterSettings,
    HeadPatterns,
    HeadPlan,
    HeadRef,
    HeadShape,
    HeadWindow,
    Plan,
    Profile,
    full_attention_heads,
)
from sp_runtime.strict_json import MAX_INT, shown

# Not taken from block_index, which imports torch: `show` and `--help` must not wait for it.
BLOCK_SIZES = (64, 128)
DTYPES = ("float32", "bfloat16", "float16")
LAYER_TYPES = ("full_attention", "sliding_attention")
PROFILE_NAME = "profile.json"
MAX_LAYERS = MAX_HEADS = 4096
MAX_TOKENS = 1 << 31
MAX_ALL_HEADS = 1 << 16
MAX_COST = 64.0
MAX_RATIO = 1.001  # float32 sums of attention mass may pass 1
MAX_SCORE = 1e6  # of a published search, whose unit is its own
_SHA256 = re.compile(r"[0-9a-f]{64}")
_H = TypeVar("_H", bound=Hashable)


def check_profile(profile: Profile, name: str) -> None:
    """Raise CorruptArtefactError naming file `name` and the first field that breaks a rule."""
    _Rules(name).profile(profile)


class _Rules:
    def __init__(self, name: str) -> None:
        self._name = name

    def profile(self, profile: Profile) -> None:
        self._require(
            _SHA256.fullmatch(profile.profile_id) is not None, "profile_id", "is no sha256"
        )
        self._model(profile.model)
        self._calibration(profile.calibration)
        if profile.clustering is not None:
            self._clustering(profile.clustering)
        heads = frozenset(full_attention_heads(profile.model))
        self._clusters(profile.clusters, heads)
        self._plan(profile.plan, heads, "plan")
        self._plans(profile, heads)
        if profile.head_patterns is not None:
            self._head_patterns(profile.head_patterns, heads)
        self._unique([p.name for p in profile.points], "points", ".name")
        for number, named in enumerate(profile.points):
            self._plain(named.name, f"points[{number}].name")
            self._require(
                not named.point.plan or any(p.name == named.point.plan for p in profile.plans),
                f"points[{number}].point.plan",
                f"{shown(named.point.plan)} is none of the profile's plans",
            )
        self._require(
            any(p.name == DEFAULT_POINT for p in profile.points),
            "points",
            f"none is named {DEFAULT_POINT!r}",
        )
        self._files(profile)

    def _model(self, model: ModelFingerprint) -> None:
        self._range(model.num_layers, 1, MAX_LAYERS, "model.num_layers")
        self._range(model.num_heads, 1, MAX_HEADS, "model.num_heads")
        self._require(
            model.num_layers * model.num_heads <= MAX_ALL_HEADS,
            "model.num_heads",
            f"is more than {MAX_ALL_HEADS} over all layers",
        )
        self._range(model.num_kv_heads, 1, model.num_heads, "model.num_kv_heads")
        self._require(
            model.num_heads % model.num_kv_heads == 0,
            "model.num_kv_heads",
            f"{model.num_kv_heads} does not divide num_heads {model.num_heads}",
        )
        self._range(model.head_dim, 1, 4096, "model.head_dim")
        self._require(
            len(model.layer_types) == model.num_layers,
            "model.layer_types",
            f"has {len(model.layer_types)} entries for {model.num_layers} layers",
        )
        for number, kind in enumerate(model.layer_types):
            self._one_of(kind, LAYER_TYPES, f"model.layer_types[{number}]")
        self._range(model.max_position_embeddings, 1, MAX_TOKENS, "model.max_position_embeddings")
        self._sha256(model.config_sha256, "model.config_sha256")
        if model.weights_sha256 is not None:
            self._sha256(model.weights_sha256, "model.weights_sha256")

    def _calibration(self, calibration: Calibration) -> None:
        for number, prompt in enumerate(calibration.prompts):
            self._sha256(prompt.sha256, f"calibration.prompts[{number}].sha256")
            self._range(prompt.tokens, 1, MAX_TOKENS, f"calibration.prompts[{number}].tokens")
        self._unique([p.sha256 for p in calibration.prompts], "calibration.prompts", ".sha256")
        self._threshold(calibration.gamma, "calibration.gamma")
        self._one_of(calibration.block_size, BLOCK_SIZES, "calibration.block_size")
        self._one_of(calibration.dtype, DTYPES, "calibration.dtype")
        self._range(calibration.seed, 0, MAX_INT, "calibration.seed")
        self._range(calibration.sample_stride, 1, 64, "calibration.sample_stride")
        self._range(calibration.quarantined, 0, MAX_INT, "calibration.quarantined")
        self._range(calibration.local_blocks, 0, MAX_TOKENS, "calibration.local_blocks")
        self._range(calibration.row_slack, 1, 64, "calibration.row_slack")
        self._unique([name for name, _ in calibration.versions], "calibration.versions", "[0]")

    def _clustering(self, settings: ClusterSettings) -> None:
        self._range(settings.threshold, 0, 1, "clustering.threshold")
        self._range(settings.min_cluster_size, 1, MAX_INT, "clustering.min_cluster_size")

    def _clusters(self, clusters: tuple[Cluster, ...], heads: frozenset[HeadRef]) -> None:
        self._unique([cluster.id for cluster in clusters], "clusters", ".id")
        owner: dict[HeadRef, int] = {}
        for number, cluster in enumerate(clusters):
            field = f"clusters[{number}]"
            self._range(cluster.id, 0, MAX_INT, f"{field}.id")
            self._require(bool(cluster.members), f"{field}.members", "is empty")
            for place, member in enumerate(cluster.members):
                path = f"{field}.members[{place}]"
                self._head(member, heads, path)
                self._require(
                    place == 0 or cluster.members[place - 1] < member,
                    path,
                    "members must ascend by layer and head, each once",
                )
                self._require(
                    member not in owner, path, f"is in cluster {owner.get(member)} as well"
                )
                owner[member] = cluster.id
            self._require(
                cluster.anchor is None or cluster.anchor in cluster.members,
                f"{field}.anchor",
                "is no member of its cluster",
            )
            self._evidence(cluster.evidence, f"{field}.evidence")

    def _evidence(self, evidence: ClusterEvidence, field: str) -> None:
        for ratio in ("jaccard_mean", "jaccard_core_mean", "recall_mean", "recall_p10"):
            self._range(getattr(evidence, ratio), 0, MAX_RATIO, f"{field}.{ratio}")
        for cost in ("lender_density", "vertical_slash_density"):
            self._range(getattr(evidence, cost), 0, MAX_COST, f"{field}.{cost}")
        self._range(evidence.saving, -MAX_COST, MAX_COST, f"{field}.saving")

    def _plans(self, profile: Profile, heads: frozenset[HeadRef]) -> None:
        self._unique([named.name for named in profile.plans], "plans", ".name")
        for number, named in enumerate(profile.plans):
            self._plain(named.name, f"plans[{number}].name")
            self._plan(named.plan, heads, f"plans[{number}].plan")
            self._require(bool(named.plan.heads), f"plans[{number}].plan.heads", "is empty")

    def _plan(self, whole: Plan, heads: frozenset[HeadRef], path: str) -> None:
        self._range(whole.recall_floor, 0, 1, f"{path}.recall_floor")
        if whole.target_recall is not None:
            self._threshold(whole.target_recall, f"{path}.target_recall")
        if whole.min_length is not None:
            self._range(whole.min_length, 1, MAX_TOKENS, f"{path}.min_length")
        plans = whole.heads
        for number, plan in enumerate(plans):
            field = f"{path}.heads[{number}]"
            self._head(plan.ref, heads, field)
            self._require(
                number == 0 or plans[number - 1].ref < plan.ref,
                field,
                "heads must ascend by layer and head, each once",
            )
            self._assignment(plan, field)
        by_head = {plan.ref: plan for plan in plans}
        missing = [list(head) for head in sorted(heads - by_head.keys())]
        self._require(
            not missing or not plans,
            f"{path}.heads",
            f"these heads have no plan: {shown(missing)}",
        )
        for number, plan in enumerate(plans):
            self._lender(plan, by_head, f"{path}.heads[{number}].lender")

    def _assignment(self, plan: HeadPlan, field: str) -> None:
        self._threshold(plan.gamma, f"{field}.gamma")
        self._range(plan.recall, 0, MAX_RATIO, f"{field}.recall")
        self._range(plan.cost, 0, MAX_COST, f"{field}.cost")
        for name, owner, value, high in (
            ("window", "streaming", plan.window, MAX_TOKENS),
            ("stride", "sampled", plan.stride, 64),
        ):
            self._require(
                (value is not None) == (plan.assignment == owner),
                f"{field}.{name}",
                f"belongs to {owner}, and only there",
            )
            if value is not None:
                self._range(value, 1, high, f"{field}.{name}")

    def _lender(self, plan: HeadPlan, by_head: dict[HeadRef, HeadPlan], field: str) -> None:
        self._require(
            (plan.lender is not None) == (plan.assignment == "borrow"),
            field,
            "belongs to borrow, and only there",
        )
        if plan.lender is None:
            return
        lender = by_head.get(plan.lender)
        if lender is None:
            raise self._error(field, f"{list(plan.lender)} is no full-attention head")
        self._require(
            lender.layer <= plan.layer, field, f"layer {lender.layer} is not before {plan.layer}"
        )
        self._require(
            lender.assignment in LENDING,
            field,
            f"is {lender.assignment}, which lends nothing (only {', '.join(LENDING)} do)",
        )
        # The mass of a dense head is known only when its layer is done.
        self._require(
            lender.layer < plan.layer or lender.assignment == "sampled",
            field,
            f"layer {lender.layer} is not before {plan.layer}, and a dense head lends later only",
        )

    def _head_patterns(self, patterns: HeadPatterns, heads: frozenset[HeadRef]) -> None:
        shapes, windows = patterns.minference, patterns.moa
        if shapes is not None:
            field = "head_patterns.minference.heads"
            self._every_head([shape.ref for shape in shapes.heads], heads, field)
            for number, shape in enumerate(shapes.heads):
                self._shape(shape, f"{field}[{number}]")
        if windows is not None:
            field = "head_patterns.moa"
            self._threshold(windows.density, f"{field}.density")
            self._range(windows.sink, 0, MAX_TOKENS, f"{field}.sink")
            self._every_head([window.ref for window in windows.heads], heads, f"{field}.heads")
            for number, window in enumerate(windows.heads):
                self._window(window, f"{field}.heads[{number}]")

    def _every_head(self, found: list[HeadRef], heads: frozenset[HeadRef], field: str) -> None:
        for number, head in enumerate(found):
            self._head(head, heads, f"{field}[{number}]")
            self._require(
                number == 0 or found[number - 1] < head,
                f"{field}[{number}]",
                "heads must ascend by layer and head, each once",
            )
        missing = [list(head) for head in sorted(heads - set(found))]
        self._require(not missing, field, f"these heads have no pattern: {shown(missing)}")

    def _shape(self, shape: HeadShape, field: str) -> None:
        lowest = 0 if shape.kind == "a_shape" else 1
        self._range(shape.vertical, lowest, MAX_TOKENS, f"{field}.vertical")
        if shape.kind == "block_sparse":
            self._require(shape.slash == 0, f"{field}.slash", "is 0 for block_sparse")
        else:
            self._range(shape.slash, 1, MAX_TOKENS, f"{field}.slash")
        self._range(shape.score, 0, MAX_SCORE, f"{field}.score")

    def _window(self, window: HeadWindow, field: str) -> None:
        self._range(window.alpha, 0, MAX_TOKENS, f"{field}.alpha")
        self._range(window.beta, 0, 1, f"{field}.beta")
        self._require(window.alpha > 0 or window.beta > 0, field, "is an empty window")
        self._range(window.mass, 0, MAX_RATIO, f"{field}.mass")

    def _files(self, profile: Profile) -> None:
        self._unique([file.name for file in profile.files], "files", ".name")
        for number, file in enumerate(profile.files):
            field = f"files[{number}]"
            self._plain(file.name, f"{field}.name")
            self._require(file.name != PROFILE_NAME, f"{field}.name", "is the profile itself")
            self._sha256(file.sha256, f"{field}.sha256")
            self._range(file.bytes, 0, MAX_INT, f"{field}.bytes")

    def _head(self, head: HeadRef, heads: frozenset[HeadRef], field: str) -> None:
        self._require(
            head in heads, field, f"{list(head)} is no head of a full-attention layer of the model"
        )

    def _threshold(self, value: float, field: str) -> None:
        self._require(0 < value <= 1, field, f"{value} is not in (0, 1]")

    def _range(self, value: float, low: float, high: float, field: str) -> None:
        self._require(low <= value <= high, field, f"{value} is not in [{low}, {high}]")

    def _one_of(self, value: object, known: tuple[object, ...], field: str) -> None:
        self._require(
            value in known, field, f"{shown(value)} is not one of {', '.join(map(str, known))}"
        )

    def _sha256(self, value: str, field: str) -> None:
        self._require(_SHA256.fullmatch(value) is not None, field, "is no sha256 in lower case")

    def _plain(self, value: str, field: str) -> None:
        self._require(
            PLAIN_NAME.fullmatch(value) is not None, field, f"{shown(value)} is no plain name"
        )

    def _unique(self, values: Iterable[_H], field: str, key: str) -> None:
        seen: set[_H] = set()
        for number, value in enumerate(values):
            self._require(value not in seen, f"{field}[{number}]{key}", "appears twice")
            seen.add(value)

    def _require(self, condition: bool, field: str, problem: str) -> None:
        if not condition:
            raise self._error(field, problem)

    def _error(self, field: str, problem: str) -> CorruptArtefactError:
        return CorruptArtefactError(f"{self._name}: {field}: {problem}")
