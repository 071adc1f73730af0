"""A small valid profile with every assignment, and tables that fit it; loaded by conftest files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from sp_profile.tables import HeadRow, MaskRow, SimilarityColumns, causal_blocks, mask_bytes
from sp_runtime.fingerprint import ModelFingerprint
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.profile import (
    Calibration,
    Cluster,
    ClusterEvidence,
    ClusterSettings,
    HeadPatterns,
    HeadPlan,
    HeadRef,
    HeadShape,
    HeadWindow,
    NamedPlan,
    NamedPoint,
    Plan,
    Producer,
    Profile,
    PromptRecord,
    ShapeTable,
    WindowTable,
    full_attention_heads,
    with_profile_id,
)

EVIDENCE = ClusterEvidence(
    jaccard_mean=0.61,
    jaccard_core_mean=0.5,
    recall_mean=0.93,
    recall_p10=0.9,
    lender_density=0.25,
    vertical_slash_density=0.5,
    saving=-0.0125,
    reason="lender is cheap | and true",
)


def plan_of(layer: int, head: int, assignment: str, **more: object) -> HeadPlan:
    return HeadPlan(
        layer=layer,
        head=head,
        assignment=assignment,
        **{"gamma": 0.9, "recall": 0.95, "cost": 0.3, **more},
    )


def make_profile(**changes: object) -> Profile:
    """Three full-attention layers of four heads around a sliding one; every assignment occurs."""
    model = ModelFingerprint(
        architecture="LlamaForCausalLM",
        model_type="llama",
        num_layers=4,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        layer_types=("full_attention", "sliding_attention", "full_attention", "full_attention"),
        rope='{"rope_theta":10000.0,"rope_type":"default"}',
        max_position_embeddings=8192,
        config_sha256="c" * 64,
        weights_sha256="d" * 64,
    )
    calibration = Calibration(
        prompts=(
            PromptRecord(sha256="a" * 64, tokens=300, task="json"),
            PromptRecord(sha256="b" * 64, tokens=512),
        ),
        gamma=0.9,
        block_size=64,
        dtype="float32",
        seed=1,
        chat_template=False,
        sample_stride=8,
        versions=(("torch", "2.13.0"), ("transformers", "5.23.0")),
        device="cpu",
    )
    clusters = (
        Cluster(
            id=0,
            members=(HeadRef(0, 0), HeadRef(2, 0), HeadRef(3, 0)),
            anchor=HeadRef(0, 0),
            enabled=True,
            evidence=EVIDENCE,
        ),
        Cluster(
            id=1,
            members=(HeadRef(0, 1), HeadRef(2, 1)),
            anchor=None,
            enabled=False,
            evidence=EVIDENCE,
        ),
    )
    heads = (
        plan_of(0, 0, "dense"),
        plan_of(0, 1, "sampled", stride=8),
        plan_of(0, 2, "streaming", gamma=1.0, window=256),
        plan_of(0, 3, "query_aware"),
        plan_of(2, 0, "borrow", lender=HeadRef(0, 0)),
        plan_of(2, 1, "borrow", lender=HeadRef(0, 1)),
        plan_of(2, 2, "vertical_slash", gamma=0.95),
        plan_of(2, 3, "vertical_slash", gamma=0.8),
        plan_of(3, 0, "borrow", lender=HeadRef(0, 0)),
        plan_of(3, 1, "dense", gamma=1.0, recall=1.0, cost=1.0),
        plan_of(3, 2, "vertical_slash"),
        plan_of(3, 3, "query_aware"),
    )
    profile = Profile(
        producer=Producer(name="sparse-prefill", version="0.1.0"),
        model=model,
        model_name="example/tiny",
        calibration=calibration,
        clustering=ClusterSettings(
            linkage="average", threshold=0.5, min_cluster_size=2, enable="evidence"
        ),
        clusters=clusters,
        plan=Plan(recall_floor=0.9, heads=heads),
        points=(
            NamedPoint(name="default", point=OperatingPoint(min_budget=128, min_tokens=512)),
            NamedPoint(
                name="paper", point=OperatingPoint(rule="paper", max_budget=4096, drift=0.5)
            ),
        ),
    )
    return with_profile_id(dataclasses.replace(profile, **changes))


def with_named_plans(profile: Profile) -> Profile:
    """Two more plans, with a borrower of its own layer, and the points that name them."""
    first = HeadRef(0, 1)
    heads = tuple(
        plan_of(*head.ref, "borrow", lender=first) if head.ref == (0, 3) else head
        for head in profile.plan.heads
    )
    fast = Plan(recall_floor=0.5, heads=heads, target_recall=0.95, min_length=300)
    default = profile.point()
    named = tuple(
        NamedPoint(name=name, point=dataclasses.replace(default, plan=name, local_blocks=1))
        for name in ("fast", "safe")
    )
    return with_profile_id(
        dataclasses.replace(
            profile,
            plans=(NamedPlan(name="fast", plan=fast), NamedPlan(name="safe", plan=profile.plan)),
            points=(*profile.points, *named),
        )
    )


def head_patterns(model: ModelFingerprint) -> HeadPatterns:
    """Every kind of shape and a window of its own for every head."""
    kinds = (("a_shape", 100, 150), ("vertical_slash", 70, 130), ("block_sparse", 200, 0))
    shapes, windows = [], []
    for number, (layer, head) in enumerate(full_attention_heads(model)):
        kind, vertical, slash = kinds[number % len(kinds)]
        shapes.append(
            HeadShape(layer=layer, head=head, kind=kind, vertical=vertical, slash=slash, score=0.75)
        )
        beta = 0.125 * (number % 3)
        windows.append(HeadWindow(layer=layer, head=head, alpha=64 * number + 1, beta=beta, mass=1))
    return HeadPatterns(
        minference=ShapeTable(source="search", heads=tuple(shapes)),
        moa=WindowTable(source="search", density=0.5, sink=64, heads=tuple(windows)),
    )


def head_rows(profile: Profile) -> list[HeadRow]:
    clusters = profile.clusters_by_head()
    rows = []
    for plan in profile.plan.heads:
        cluster = clusters.get(plan.ref)
        anchor = (cluster and cluster.anchor) or HeadRef(-1, -1)
        lender = plan.lender or HeadRef(-1, -1)
        rows.append(
            HeadRow(
                layer=plan.layer,
                head=plan.head,
                cluster=cluster.id if cluster else -1,
                anchor_layer=anchor.layer,
                anchor_head=anchor.head,
                lender_layer=lender.layer,
                lender_head=lender.head,
                assignment=plan.assignment,
                gamma=plan.gamma,
                density=0.3,
                density_std=0.01,
                recall_own=0.9,
                recall_anchor=0.8 if cluster and cluster.anchor else -1,
                jaccard_anchor=0.6 if cluster and cluster.anchor else -1,
                uniform_jsd=0.4,
                vertical_slash_recall=0.85,
                vertical_slash_cost=0.2,
            )
        )
    return rows


def similarity(profile: Profile, seed: int = 0) -> SimilarityColumns:
    heads = len(profile.plan.heads)
    values = np.random.default_rng(seed).random((4, heads * (heads - 1) // 2), dtype=np.float32)
    return SimilarityColumns(mean=values[0], min=values[1], spread=values[2], core_mean=values[3])


def mask_rows(profile: Profile) -> Iterator[MaskRow]:
    for prompt in sorted(profile.calibration.prompts, key=lambda prompt: prompt.sha256):
        blocks = causal_blocks(prompt.tokens, profile)
        for plan in profile.plan.heads:
            bits = np.zeros(8 * mask_bytes(blocks), np.uint8)
            bits[: plan.layer + plan.head + 1] = 1
            yield MaskRow(
                prompt_sha256=prompt.sha256,
                layer=plan.layer,
                head=plan.head,
                tokens=prompt.tokens,
                blocks=blocks,
                bits=np.packbits(bits).tobytes(),
            )
