"""Engines of every method on three layers, without a profile; shared by this folder's scripts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from sp_runtime.engine import Engine
from sp_runtime.kernels.triton_backend import TritonKernels
from sp_runtime.operating_point import OperatingPoint
from sp_runtime.patterns.flexprefill import FlexPrefillPattern
from sp_runtime.patterns.plan import PlanPattern
from sp_runtime.patterns.plan_tables import PlanTables
from sp_runtime.patterns.sampled import SampledPattern
from sp_runtime.patterns.share import SharePattern
from sp_runtime.patterns.share_tables import ShareTables
from sp_runtime.patterns.vertical_slash import VerticalSlashPattern
from sp_runtime.profile import Cluster, ClusterEvidence, HeadPlan, HeadRef

LAYERS = 3
POINTS = {
    "vertical_slash": OperatingPoint(method="vertical_slash", min_budget=64, min_tokens=64),
    "share:paper": OperatingPoint(
        method="share", rule="paper", min_budget=64, min_tokens=64, delta=1.01, tau=1.0
    ),
    "share:release": OperatingPoint(
        method="share", rule="release", min_budget=64, min_tokens=64, tau=1.0, kappa=0.0, phi=1.0
    ),
    "flexprefill": OperatingPoint(method="flexprefill", min_budget=64, min_tokens=64, kappa=0.3),
    "sampled": OperatingPoint(method="sampled", min_budget=64, min_tokens=64, stride=16),
    "plan": OperatingPoint(rule="plan", min_budget=64, min_tokens=64, local_blocks=1),
    "plan:drift": OperatingPoint(
        rule="plan", min_budget=64, min_tokens=64, local_blocks=1, last_rows=1, drift=0.05
    ),
}


def clusters(heads: int) -> tuple[Cluster, ...]:
    """Two enabled clusters over every layer: heads 0, 2, 4 ... and 1, 3, 5 ... but the last."""
    evidence = ClusterEvidence(
        jaccard_mean=0.6, jaccard_core_mean=0.5, recall_mean=0.9, recall_p10=0.9,
        lender_density=0.2, vertical_slash_density=0.4, saving=0.1, reason="an example",
    )  # fmt: skip
    return tuple(
        Cluster(
            id=first,
            members=tuple(
                HeadRef(layer, head)
                for layer in range(LAYERS)
                for head in range(first, heads - 1, 2)
            ),
            anchor=HeadRef(0, first),
            enabled=True,
            evidence=evidence,
        )
        for first in range(2)
    )


def plan_heads(heads: int) -> list[HeadPlan]:
    """Every assignment, sampled heads of one stride, and lenders of the same and other layers."""
    plans = []
    for ref in (HeadRef(layer, head) for layer in range(LAYERS) for head in range(heads)):
        kind: dict[str, Any] = {"assignment": "sampled", "stride": 16}
        if ref.head == 0:
            kind = {"assignment": "vertical_slash"}
        elif ref.head == 1:
            kind = {"assignment": "streaming", "window": 128}
        elif ref.head == 2 and ref.layer == 0:
            kind = {"assignment": "dense"}
        elif ref.head == 3:
            kind = {"assignment": "borrow", "lender": HeadRef(ref.layer, heads - 1)}
        elif ref.head == 4 < heads - 1:
            kind = {"assignment": "query_aware"}
        elif ref.head < heads - 1 and ref.layer > 0:
            kind = {"assignment": "borrow", "lender": HeadRef(0, 2 if ref.head == 2 else heads - 1)}
        plans.append(HeadPlan(**ref._asdict(), gamma=0.9, recall=0.9, cost=0.3, **kind))
    return plans


def make_engine(name: str, *, heads: int, block: int, kernels: Any = None) -> Engine:
    """An engine of three layers for one of POINTS."""
    point = POINTS[name]
    tables = ShareTables(clusters(heads), block_size=block)
    plan = PlanTables(plan_heads(heads), block_size=block, dense_layers=0)
    make: dict[str, Callable[[], Any]] = {
        "vertical_slash": lambda: VerticalSlashPattern(point=point),
        "flexprefill": lambda: FlexPrefillPattern(point=point),
        "sampled": lambda: SampledPattern(point=point),
        "share": lambda: SharePattern(point=point, tables=tables),
        "plan": lambda: PlanPattern(point=point, tables=plan),
    }
    return Engine(
        make_pattern=make["plan" if name.startswith("plan") else point.method],
        point=point,
        kernels=TritonKernels() if kernels is None else kernels,
        block_size=block,
        layers=tuple(range(LAYERS)),
    )


def forward(engine: Engine, q: Any, k: Any, v: Any) -> list[torch.Tensor]:
    """The outputs of every layer; q, k, v have a layer dimension first."""
    engine.report.clear()
    engine.begin(q_len=q.shape[3], kv_len=k.shape[3])
    scale = q.shape[-1] ** -0.5
    return [engine.attend(layer=i, q=q[i], k=k[i], v=v[i], scale=scale) for i in range(q.shape[0])]
