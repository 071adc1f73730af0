"""Means of the calibration's measurements by task and half, streamed from the shards."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from sp_profile.accumulators import ExactMean
from sp_profile.planning import PlanMeasurements
from sp_profile.shard import PromptShard
from sp_runtime.block_index import BlockGrid
from sp_runtime.patterns.cost import last_block_cost
from sp_runtime.profile import PromptRecord

Matrix = npt.NDArray[np.float64]

_FIELDS = (
    "candidate_cost",
    "candidate_recall",
    "recall_exact",
    "recall_sampled",
    "density",
    "sampled_density",
)


def row_estimate_cost(grid: BlockGrid) -> float:
    """Cost of one head's last-row estimate, over the causal blocks of a head."""
    return last_block_cost(grid) / grid.num_causal_blocks


def split_halves(prompts: Sequence[PromptRecord]) -> dict[str, int] | None:
    """Half (0: to choose on, 1: to check on) of each prompt by sha256; None if a task has one.

    Within a task prompts alternate in the order of their hashes, so the split depends on nothing
    else.
    """
    by_task: dict[str, list[str]] = {}
    for prompt in prompts:
        by_task.setdefault(prompt.task, []).append(prompt.sha256)
    if min((len(hashes) for hashes in by_task.values()), default=0) < 2:
        return None
    return {name: n % 2 for hashes in by_task.values() for n, name in enumerate(sorted(hashes))}


class _Cell:
    """Means over the prompts of one task and half."""

    def __init__(self, shard: PromptShard) -> None:
        self.means = {name: ExactMean(getattr(shard, name).shape) for name in _FIELDS}
        self.row_estimate = ExactMean((1,))

    def add(self, shard: PromptShard) -> None:
        for name, mean in self.means.items():
            mean.add(getattr(shard, name))
        self.row_estimate.add(np.array([row_estimate_cost(shard.grid)]))


class ShardMeans:
    """Means of every measured quantity, by task and half; memory grows with the tasks alone."""

    def __init__(self) -> None:
        self._cells: dict[tuple[str, int], _Cell] = {}

    def add(self, shard: PromptShard, half: int) -> None:
        """Take one prompt's measurements under `half` (0 or 1)."""
        key = (shard.prompt.task, half)
        if key not in self._cells:
            self._cells[key] = _Cell(shard)
        self._cells[key].add(shard)

    def result(self, halves: tuple[int, ...] = (0, 1)) -> PlanMeasurements:
        """Means over the prompts of some halves; at least one prompt must be in them."""
        cells = {key: cell for key, cell in self._cells.items() if key[1] in halves}
        assert cells, "no prompt in these halves"
        tasks = sorted({task for task, _ in cells})

        def pooled(name: str) -> Matrix:
            return ExactMean.pooled(cell.means[name] for cell in cells.values())

        def worst(name: str) -> Matrix:
            lowest: Matrix | None = None
            for task in tasks:
                mean = ExactMean.pooled(
                    cell.means[name] for key, cell in cells.items() if key[0] == task
                )
                lowest = mean if lowest is None else np.minimum(lowest, mean)
            assert lowest is not None
            return lowest

        return PlanMeasurements(
            prompts=sum(cell.row_estimate.count for cell in cells.values()),
            candidate_cost=pooled("candidate_cost"),
            candidate_recall=pooled("candidate_recall"),
            worst_candidate_recall=worst("candidate_recall"),
            recall_exact=pooled("recall_exact"),
            worst_recall_exact=worst("recall_exact"),
            recall_sampled=pooled("recall_sampled"),
            worst_recall_sampled=worst("recall_sampled"),
            density=pooled("density"),
            sampled_density=pooled("sampled_density"),
            row_estimate=float(ExactMean.pooled(cell.row_estimate for cell in cells.values())[0]),
        )
