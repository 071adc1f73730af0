"""A profile for planted inputs, whose heads of one KV head are alike in every layer.

It gives the sharing methods something to share; it describes no model.
"""

from __future__ import annotations

from sp_profile.bench.inputs import LayerShape
from sp_runtime.fingerprint import ModelFingerprint
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.profile import (
    DEFAULT_POINT,
    Calibration,
    Cluster,
    ClusterEvidence,
    HeadPlan,
    HeadRef,
    NamedPoint,
    Plan,
    Producer,
    Profile,
)
from sp_runtime.version import __version__

SAMPLE_STRIDE = 16
_WINDOW = 1024


def synthetic_profile(shape: LayerShape, layers: int) -> Profile:
    """Clusters: all heads of a KV head, over all layers. Plan: see `_plan`."""
    evidence = ClusterEvidence(
        jaccard_mean=1.0,
        jaccard_core_mean=1.0,
        recall_mean=1.0,
        recall_p10=1.0,
        lender_density=0.0,
        vertical_slash_density=0.0,
        saving=0.0,
        reason="planted",
    )
    group = shape.heads // shape.kv_heads
    clusters = tuple(
        Cluster(
            id=kv_head,
            members=tuple(
                HeadRef(layer, head)
                for layer in range(layers)
                for head in range(kv_head * group, (kv_head + 1) * group)
            ),
            anchor=HeadRef(0, kv_head * group),
            enabled=True,
            evidence=evidence,
        )
        for kv_head in range(shape.kv_heads)
    )
    plans = tuple(
        _plan(layer, head, group) for layer in range(layers) for head in range(shape.heads)
    )
    return Profile(
        producer=Producer(name="sparse-prefill", version=__version__),
        model=_model(shape, layers),
        model_name="planted",
        calibration=Calibration(
            prompts=(),
            gamma=0.9,
            block_size=shape.block_size,
            dtype=shape.dtype,
            seed=0,
            chat_template=False,
            sample_stride=SAMPLE_STRIDE,
        ),
        clusters=clusters,
        plan=Plan(recall_floor=0.9, heads=plans),
        points=(NamedPoint(name=DEFAULT_POINT, point=OperatingPoint()),),
    )


def _plan(layer: int, head: int, group: int) -> HeadPlan:
    """In layer 0 the first head of each KV head is sampled and lends, the others vertical-slash;
    afterwards one in four is vertical-slash, one streaming, and two borrow."""
    lender = HeadRef(0, head - head % group)
    if layer == 0 and head == lender.head:
        return HeadPlan(
            layer=0, head=head, assignment="sampled", gamma=0.9, stride=SAMPLE_STRIDE,
            recall=0.9, cost=0.2,
        )  # fmt: skip
    turn = head % 4
    if layer > 0 and turn >= 2:
        return HeadPlan(
            layer=layer, head=head, assignment="borrow", gamma=0.9, lender=lender,
            recall=0.9, cost=0.1,
        )  # fmt: skip
    if layer > 0 and turn == 1:
        return HeadPlan(
            layer=layer, head=head, assignment="streaming", gamma=1.0, window=_WINDOW,
            recall=0.9, cost=0.1,
        )  # fmt: skip
    return HeadPlan(
        layer=layer, head=head, assignment="vertical_slash", gamma=0.9, recall=0.9, cost=0.1
    )


def _model(shape: LayerShape, layers: int) -> ModelFingerprint:
    return ModelFingerprint(
        architecture="planted",
        model_type="planted",
        num_layers=layers,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        layer_types=("full_attention",) * layers,
        rope="{}",
        max_position_embeddings=shape.length,
        config_sha256="0" * 64,
        weights_sha256=None,
    )
