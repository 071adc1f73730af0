"""The rows of heads.parquet and the columns of similarity.parquet, from a run's measurements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sp_profile.candidates import Candidate
from sp_profile.measure import MeanMeasurements
from sp_profile.similarity import Similarity
from sp_profile.tables import NONE, HeadRow, SimilarityColumns
from sp_runtime.profile import Profile

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadMeasurements:
    """float64 [LH] each: density of the forced gamma-masks with its deviation over the prompts,
    and sqrtJSD (nats) of the last-row estimate to uniform. gamma, candidates: the run's."""

    density: Matrix
    density_std: Matrix
    uniform_jsd: Matrix
    gamma: float
    candidates: tuple[Candidate, ...]


def head_rows(
    profile: Profile,
    heads: HeadMeasurements,
    measured: MeanMeasurements,
    similarity: Similarity,
) -> Iterator[HeadRow]:
    """One row a head in (layer, head) order; vertical-slash at the gamma nearest the run's."""
    index = {plan.ref: number for number, plan in enumerate(profile.plan.heads)}
    clusters = profile.clusters_by_head()
    slash = _vertical_slash_column(heads)
    for number, plan in enumerate(profile.plan.heads):
        cluster = clusters.get(plan.ref)
        anchor = None if cluster is None else cluster.anchor
        source = None if anchor is None else index[anchor]
        yield HeadRow(
            layer=plan.layer,
            head=plan.head,
            cluster=NONE if cluster is None else cluster.id,
            anchor_layer=NONE if anchor is None else anchor.layer,
            anchor_head=NONE if anchor is None else anchor.head,
            lender_layer=NONE if plan.lender is None else plan.lender.layer,
            lender_head=NONE if plan.lender is None else plan.lender.head,
            assignment=plan.assignment,
            gamma=plan.gamma,
            density=float(heads.density[number]),
            density_std=float(heads.density_std[number]),
            recall_own=float(measured.recall_exact[number, number]),
            recall_anchor=NONE if source is None else float(measured.recall_exact[number, source]),
            jaccard_anchor=NONE if source is None else float(similarity.mean[number, source]),
            uniform_jsd=float(heads.uniform_jsd[number]),
            vertical_slash_recall=_at(measured.candidate_recall, number, slash, 0.0),
            vertical_slash_cost=_at(measured.candidate_cost, number, slash, 0.0),
        )


def similarity_columns(similarity: Similarity) -> SimilarityColumns:
    """The statistics of every pair in condensed order, float32."""
    pairs = np.triu_indices(similarity.mean.shape[0], 1)

    def column(matrix: Matrix) -> npt.NDArray[np.float32]:
        return matrix[pairs].astype(np.float32)

    return SimilarityColumns(
        mean=column(similarity.mean),
        min=column(similarity.minimum),
        spread=column(similarity.std),
        core_mean=column(similarity.core_mean),
    )


def _vertical_slash_column(heads: HeadMeasurements) -> int | None:
    columns = [k for k, c in enumerate(heads.candidates) if c.assignment == "vertical_slash"]
    return min(columns, key=lambda k: abs(heads.candidates[k].gamma - heads.gamma), default=None)


def _at(table: Matrix, row: int, column: int | None, missing: float) -> float:
    return missing if column is None else float(table[row, column])
