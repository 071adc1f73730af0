"""Means of the calibration's measurements, streamed from the shards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sp_profile.accumulators import ExactMean
from sp_profile.shard import PromptShard
from sp_runtime.block_index import BlockGrid
from sp_runtime.patterns.cost import last_block_cost
from sp_runtime.profile import PromptRecord

Matrix = npt.NDArray[np.float64]

_FIELDS = ("candidate_cost", "candidate_recall", "recall_exact", "density")


def row_estimate_cost(grid: BlockGrid) -> float:
    """Cost of one head's last-row estimate, over the causal blocks of a head."""
    return last_block_cost(grid) / grid.num_causal_blocks


def split_halves(prompts: Sequence[PromptRecord]) -> dict[str, int] | None:
    """Half (0 or 1) of each prompt by sha256; None if a task has one prompt.

    Within a task prompts alternate in the order of their lengths, then hashes, so that the halves
    are alike in both and the split depends on nothing else.
    """
    by_task: dict[str, list[PromptRecord]] = {}
    for prompt in prompts:
        by_task.setdefault(prompt.task, []).append(prompt)
    if min((len(of_task) for of_task in by_task.values()), default=0) < 2:
        return None
    return {
        prompt.sha256: (place + start) % 2
        for start, task in enumerate(sorted(by_task))
        for place, prompt in enumerate(sorted(by_task[task], key=lambda p: (p.tokens, p.sha256)))
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanMeasurements:
    """Means over calibration prompts.

    candidate_cost, candidate_recall: float64 [LH, K]. recall_exact: float64 [LH, LH], entry [b, l]
    for head b under l's exact mask. density: float64 [LH], of the exact forced masks.
    row_estimate: cost of one head's last-row estimate.
    """

    candidate_cost: Matrix
    candidate_recall: Matrix
    recall_exact: Matrix
    density: Matrix
    row_estimate: float


class ShardMeans:
    """Exact means of what clusters and tables are made from; their order does not count."""

    def __init__(self) -> None:
        self._means: dict[str, ExactMean] = {}
        self._row_estimate = ExactMean((1,))

    def add(self, shard: PromptShard) -> None:
        """Take one prompt's measurements."""
        for name in _FIELDS:
            values = getattr(shard, name)
            self._means.setdefault(name, ExactMean(values.shape)).add(values)
        self._row_estimate.add(np.array([row_estimate_cost(shard.grid)]))

    def result(self) -> MeanMeasurements:
        """Means over what was added; at least one prompt."""
        means = {name: mean.mean() for name, mean in self._means.items()}
        return MeanMeasurements(row_estimate=float(self._row_estimate.mean()[0]), **means)
