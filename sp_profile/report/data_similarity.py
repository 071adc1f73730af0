"""The dendrogram of a profile, and how the similarity of heads spreads over its prompts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sp_profile.accumulators import ExactMean, Histogram
from sp_profile.report.data_types import Dendrogram, Quantiles, SpreadGroup
from sp_profile.similarity import MIN_BLOCK_ROWS, pairwise_jaccard
from sp_profile.tables import MaskRow, SimilarityColumns
from sp_runtime.block_index import BlockGrid
from sp_runtime.profile import Profile, PromptRecord, full_attention_heads

_QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_WITHIN, _ALL = 0, 1

Vector = npt.NDArray[np.float64]


def dendrogram(similarity: SimilarityColumns, num_heads: int) -> Dendrogram | None:
    """Average linkage on 1 - Jaccard as the clusters were made; None under two heads."""
    if num_heads < 2:
        return None
    from scipy.cluster import hierarchy

    # A pair without a Jaccard counts as unlike.
    condensed = 1.0 - np.clip(similarity.mean.astype(np.float64), 0.0, 1.0)
    tree = hierarchy.linkage(condensed, method="average")
    drawn = hierarchy.dendrogram(tree, no_plot=True, get_leaves=True)
    return Dendrogram(
        order=np.array(drawn["leaves"], dtype=np.int32),
        # SciPy puts leaf i at 10 i + 5.
        x=(np.array(drawn["icoord"], dtype=np.float64) - 5.0) / 10.0,
        y=np.array(drawn["dcoord"], dtype=np.float64),
    )


class SpreadOverPrompts:
    """Collects the Jaccard of all pairs prompt by prompt; memory grows with the groups alone."""

    def __init__(self, profile: Profile, similarity: SimilarityColumns) -> None:
        self._profile = profile
        self._pairs = np.triu_indices(len(full_attention_heads(profile.model)), 1)
        self._mean = similarity.mean.astype(np.float64)
        labels = cluster_labels(profile)
        first, second = (labels[side] for side in self._pairs)
        self._within = (first == second) & (first >= 0)
        self._groups: dict[tuple[str, str], _Group] = {}
        self._entered = sum(
            -(-prompt.tokens // profile.calibration.block_size) >= MIN_BLOCK_ROWS
            for prompt in profile.calibration.prompts
        )

    def add(self, rows: Sequence[MaskRow]) -> None:
        """Take one prompt's masks; a prompt of too few block rows is left out."""
        tokens, sha256 = rows[0].tokens, rows[0].prompt_sha256
        size = self._profile.calibration.block_size
        num_rows = BlockGrid(q_len=tokens, kv_len=tokens, block_size=size).num_rows
        if num_rows < MIN_BLOCK_ROWS:
            return
        packed = np.frombuffer(b"".join(row.bits for row in rows), np.uint8)
        jaccard = pairwise_jaccard(packed.reshape(len(rows), -1), num_rows).full[self._pairs]
        prompt = next(p for p in self._profile.calibration.prompts if p.sha256 == sha256)
        task = prompt.task or "own prompts"
        for kind, label in (
            ("prompt", self._name(prompt, task)),
            ("task", task),
            ("length", f"{1 << (tokens - 1).bit_length():,}"),
        ):
            group = self._groups.setdefault((kind, label), _Group(len(jaccard), tokens))
            group.add(jaccard, self._within)

    def _name(self, prompt: PromptRecord, task: str) -> str:
        """Task and tokens, and the beginning of the hash where another prompt has the same."""
        twins = sum(
            (other.task, other.tokens) == (prompt.task, prompt.tokens)
            for other in self._profile.calibration.prompts
        )
        name = f"{task}, {prompt.tokens:,}"
        return name if twins == 1 else f"{name} ({prompt.sha256[:6]})"

    def result(self) -> tuple[SpreadGroup, ...]:
        """Prompts, tasks, lengths; each kind by tokens, then by label."""
        kinds = ("prompt", "task", "length")
        ordered = sorted(
            self._groups.items(),
            key=lambda item: (
                kinds.index(item[0][0]),
                0 if item[0][0] == "task" else item[1].tokens,
                item[0][1],
            ),
        )
        return tuple(
            SpreadGroup(
                kind=kind,  # type: ignore[arg-type]
                label=label,
                prompts=group.jaccard.count,
                within=group.quantiles(_WITHIN) if self._within.any() else None,
                all=group.quantiles(_ALL),
                correlation=self._correlation(group),
            )
            for (kind, label), group in ordered
        )

    def _correlation(self, group: _Group) -> float | None:
        """With the mean over the other prompts, which the mean over all of them gives."""
        others = self._entered - group.jaccard.count
        if others < 1 or len(self._mean) < 2:
            return None
        mine = group.jaccard.mean()
        rest = (self._entered * self._mean - group.jaccard.count * mine) / others
        if min(mine.std(), rest.std()) < 1e-9:
            return None
        found = float(np.corrcoef(mine, rest)[0, 1])
        return found if math.isfinite(found) else None


class _Group:
    """The prompts of one label."""

    def __init__(self, pairs: int, tokens: int) -> None:
        self.tokens = tokens
        self.jaccard = ExactMean((pairs,))
        self._values = Histogram(2)

    def add(self, jaccard: Vector, within: npt.NDArray[np.bool_]) -> None:
        self.jaccard.add(jaccard)
        self._values.add(_WITHIN, jaccard[within])
        self._values.add(_ALL, jaccard)

    def quantiles(self, which: int) -> Quantiles:
        low, lower, median, upper, high = (self._values.quantile(which, q) for q in _QUANTILES)
        return Quantiles(low=low, lower=lower, median=median, upper=upper, high=high)


def cluster_labels(profile: Profile) -> npt.NDArray[np.int32]:
    """int32 [LH]: the cluster of each head, -1 where it has none."""
    of_head = profile.clusters_by_head()
    refs = full_attention_heads(profile.model)
    return np.array([of_head[ref].id if ref in of_head else -1 for ref in refs], dtype=np.int32)
