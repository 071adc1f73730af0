"""Clusters of similar heads and the head of each that can lend its mask to the others.

Heads are numbered in (layer, head) order, so an index comparison is a (layer, head) comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

NOISE = -1

Matrix = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Clustering:
    """labels: int32 [LH], the cluster of each head or -1; members: head indices by cluster,
    ascending. Clusters are numbered by their first member in (layer, head) order."""

    labels: Ints
    members: tuple[tuple[int, ...], ...]


def cluster_heads(
    similarity: Matrix, *, distance: float = 0.5, min_cluster_size: int = 5
) -> Clustering:
    """Average-linkage clustering on 1 - similarity, float64 [LH, LH] symmetric in [0, 1].

    Flat clusters are cut at cophenetic distance <= `distance`; those with fewer than
    `min_cluster_size` heads become noise.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    num_heads = similarity.shape[0]
    labels = np.full(num_heads, NOISE, dtype=np.int32)
    if num_heads < 2:
        flat = np.ones(num_heads, dtype=np.int32)
    else:
        # The condensed form lists pairs in (layer, head) order, which is how scipy breaks ties.
        condensed = np.clip(1.0 - similarity[np.triu_indices(num_heads, 1)], 0.0, 1.0)
        flat = fcluster(linkage(condensed, method="average"), t=distance, criterion="distance")
    found: dict[int, list[int]] = {}
    for head, label in enumerate(flat):
        found.setdefault(int(label), []).append(head)
    members = tuple(
        tuple(heads)
        for heads in sorted(found.values(), key=lambda heads: heads[0])
        if len(heads) >= min_cluster_size
    )
    for number, heads in enumerate(members):
        labels[list(heads)] = number
    return Clustering(labels=labels, members=members)


def served_by(lender: int, members: Sequence[int], layers: Ints) -> tuple[int, ...]:
    """The members that run in a later layer than `lender`, and so can borrow from it."""
    return tuple(head for head in members if layers[head] > layers[lender])


def first_lender(members: Sequence[int], layers: Ints) -> int | None:
    """The lender of the published rules: the first head in layer order; None if it serves none."""
    first = min(members)
    return first if served_by(first, members, layers) else None


def choose_anchor(members: Sequence[int], layers: Ints, similarity: Matrix) -> int | None:
    """The medoid among the heads that can lend, or None if all members share one layer.

    A head can lend if some member runs in a later layer. Its score is the mean similarity to the
    other members, where a member it cannot serve counts 0: a late head that fits one follower must
    not beat an early one that fits ten. Ties go to the lowest (layer, head).
    """
    ordered = np.asarray(sorted(members))
    later = layers[ordered][None, :] > layers[ordered][:, None]
    if not later.any():
        return None
    scores = np.where(later, similarity[np.ix_(ordered, ordered)], 0.0).sum(1)
    # A head that can lend with similarity 0 to all still outranks one that cannot lend.
    return int(ordered[np.argmax(np.where(later.any(1), scores, -1.0))])
