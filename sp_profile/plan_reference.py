"""What a plan is compared with: methods with one setting for all heads, at a mean recall."""

from __future__ import annotations

import numpy as np

from sp_profile.candidates import PEERS
from sp_profile.evidence import cost_at_recall
from sp_profile.plan_data import PlanTables, Rows
from sp_profile.plan_types import Reference

TAIL = 0.1


def reference(tables: PlanTables, rows: Rows, method: str, target: float) -> Reference:
    """A method with one setting for all heads, between its settings, at a mean recall.

    method: an assignment, "sampled, stride S" or "oracle" (each head's own exact mask, whose
    estimate is not counted).
    """
    cost, recall = _curve(tables, rows, method)
    if not cost.shape[-1]:
        return Reference(method=method, cost=None, recall_p10=None)
    means = recall.mean((0, 1))
    if means.max() < target:
        return Reference(method=method, cost=None, recall_p10=None)
    tails = np.quantile(recall, TAIL, axis=(0, 1))
    order = np.argsort(means, kind="stable")
    return Reference(
        method=method,
        cost=cost_at_recall(cost.mean((0, 1)), means, target),
        recall_p10=float(np.interp(target, means[order], tails[order])),
    )


def reference_names(tables: PlanTables) -> tuple[str, ...]:
    """What `reference` knows of these tables."""
    strides = sorted({one.stride for one in tables.candidates if one.stride is not None})
    return (
        *(name for name in ("vertical_slash", "query_aware", *PEERS) if tables.columns(name)),
        *(f"sampled, stride {stride}" for stride in strides),
        "oracle",
    )


def _curve(tables: PlanTables, rows: Rows, method: str) -> tuple[np.ndarray, np.ndarray]:
    """float64 [rows, LH, settings] each, cost and recall."""
    if method == "oracle":
        cost, recall = tables.oracle_cost[rows], tables.oracle_recall[rows]
        return cost.astype(np.float64), recall.astype(np.float64)
    name, _, stride = method.partition(", stride ")
    columns = tables.columns(name)
    if stride:
        columns = [k for k in columns if tables.candidates[k].stride == int(stride)]
    return (
        tables.cost[rows][..., columns].astype(np.float64),
        tables.recall[rows][..., columns].astype(np.float64),
    )
