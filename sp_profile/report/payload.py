"""What the page's script draws from, as JSON: figures, similarity, pictures and facts of heads."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sp_profile.figures.palette import ASSIGNMENT_COLOURS, CIVIDIS, OKABE_ITO, scale_top
from sp_profile.report.chart import Chart
from sp_profile.report.data_gallery import anchor_indices
from sp_profile.report.data_similarity import cluster_labels
from sp_profile.report.data_types import GalleryPrompt, ReportData
from sp_profile.tables import SimilarityColumns
from sp_runtime.profile import HeadRef

_LEVELS, _NO_JACCARD = 250, 255
_DIGITS = 4
_MEASURES = (
    ("recall in its own mask", "recall_own"),
    ("recall in the anchor's mask", "recall_anchor"),
    ("Jaccard to the anchor", "jaccard_anchor"),
    ("vertical-slash recall", "vertical_slash_recall"),
    ("vertical-slash cost", "vertical_slash_cost"),
    ("last row, distance to uniform", "uniform_jsd"),
)


def report_payload(data: ReportData, charts: Iterable[Chart]) -> str:
    """One JSON document; every name in it is the script's."""
    model = data.profile.model
    document: dict[str, Any] = {
        "layers": model.full_layers,
        "perLayer": model.num_heads,
        "count": len(data.refs),
        "cividis": CIVIDIS,
        "palette": OKABE_ITO,
        "assignments": dict(ASSIGNMENT_COLOURS),
        "facts": [["density", "density"], *_MEASURES] if data.heads else [],
        "heads": _heads(data),
        "first": _first(data),
        "densityTop": scale_top(max((row.density for row in data.heads), default=1.0)),
        "costTop": scale_top(max((head.cost for head in data.profile.plan.heads), default=1.0)),
        "gallery": [_prompt(prompt) for prompt in data.gallery],
        "jaccard": None,
        "charts": {
            chart.name: {"figure": json.loads(chart.figure.to_json()), "picks": chart.picks}
            for chart in charts
        },
    }
    if data.similarity is not None and data.dendrogram is not None:
        document["jaccard"] = {
            "pairs": _levels(data.similarity),
            "order": data.dendrogram.order.tolist(),
            "levels": _LEVELS,
            "none": _NO_JACCARD,
        }
    return json.dumps(document, separators=(",", ":"), allow_nan=False)


def prompt_label(prompt: GalleryPrompt) -> str:
    """Such as json_kv, 16,384 tokens."""
    return f"{prompt.prompt.task or 'own prompt'}, {prompt.prompt.tokens:,} tokens"


def _heads(data: ReportData) -> dict[str, list[Any]]:
    """Columns of every head."""
    index = {ref: number for number, ref in enumerate(data.refs)}
    clusters = {cluster.id: number for number, cluster in enumerate(data.profile.clusters)}
    enabled = {cluster.id for cluster in data.profile.clusters if cluster.enabled}
    anchors = {cluster.anchor for cluster in data.profile.clusters}
    labels = cluster_labels(data.profile).tolist()
    plan = data.profile.plan.heads
    columns: dict[str, list[Any]] = {
        "cluster": labels,
        "clusterPlace": [clusters.get(label, -1) for label in labels],
        "enabled": [label in enabled for label in labels],
        "isAnchor": [ref in anchors for ref in data.refs],
        "anchor": [None if number < 0 else number for number in anchor_indices(data.profile)],
        "assignment": [head.assignment for head in plan],
        "cost": [round(head.cost, _DIGITS) for head in plan],
        "recall": [round(head.recall, _DIGITS) for head in plan],
        "lender": [_index(head.lender, index) for head in plan] or [None] * len(data.refs),
        "density": [round(row.density, _DIGITS) for row in data.heads],
    }
    for _, name in _MEASURES:
        columns[name] = [_measure(getattr(row, name)) for row in data.heads]
    columns["anchor"] = [None if found is None else int(found) for found in columns["anchor"]]
    return columns


def _first(data: ReportData) -> int:
    """The head that is shown first: of the largest cluster, the last that is not its anchor."""
    if not data.profile.clusters:
        return 0
    largest = max(data.profile.clusters, key=lambda cluster: len(cluster.members))
    others = [member for member in largest.members if member != largest.anchor]
    return data.refs.index((others or largest.members)[-1])


def _prompt(prompt: GalleryPrompt) -> dict[str, Any]:
    return {
        "label": prompt_label(prompt),
        "side": prompt.side,
        "masks": _triangles(prompt.masks),
        "mass": None if prompt.mass is None else _triangles(prompt.mass),
        "density": _rounded(prompt.density),
        "jaccard": _rounded(prompt.jaccard_anchor),
        "recall": None if prompt.recall_anchor is None else _rounded(prompt.recall_anchor),
    }


def _triangles(squares: NDArray[np.uint8]) -> str:
    rows, cols = np.tril_indices(squares.shape[1])
    return _base64(squares[:, rows, cols].tobytes())


def _levels(similarity: SimilarityColumns) -> str:
    mean = similarity.mean
    levels = np.rint(np.clip(mean, 0.0, 1.0) * _LEVELS).astype(np.uint8)
    return _base64(np.where(mean < 0, np.uint8(_NO_JACCARD), levels).tobytes())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _rounded(values: NDArray[np.float32]) -> Sequence[float | None]:
    return [_measure(value) for value in values.tolist()]


def _measure(value: float) -> float | None:
    """None for NaN and for the tables' -1."""
    return None if math.isnan(value) or value == -1 else round(value, _DIGITS)


def _index(ref: HeadRef | None, index: dict[HeadRef, int]) -> int | None:
    return None if ref is None else index[ref]
