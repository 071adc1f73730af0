"""What plans are chosen from: every calibration prompt's measurements, in arrays.

Legend: P prompts ascending by sha256, LH heads in (layer, head) order, K candidates of the run, M
masks that can be lent, G oracle gammas. Costs are blocks, estimation included, over the causal
blocks of one head. Memory grows with P M LH^2: 2 bytes an entry, 0.6 GiB for 1,024 heads, four
masks and 80 prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sp_profile.candidates import Candidate
from sp_profile.measure import row_estimate_cost
from sp_profile.run_config import RunConfig
from sp_profile.run_folder import Run
from sp_profile.shard import PromptShard
from sp_profile.similarity import MIN_BLOCK_ROWS, Similarity, SimilarityAccumulator
from sp_runtime.errors import UsageError
from sp_runtime.profile import PromptRecord, full_attention_heads

Progress = Callable[[int, int], None]
Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Ints = npt.NDArray[np.int32]
Rows = npt.NDArray[np.intp]
"""Numbers of some prompts, ascending."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lending:
    """One kind of mask that can be lent. column: the candidate that its lender computes, or None
    where a dense head lends its exact mask at `gamma`."""

    gamma: float
    column: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanTables:
    """cost, recall: float32 [P, LH, K + 1]; the last column is dense attention. lent_recall:
    float16 [P, M, LH, LH], entry [b, l] of head b under l's mask, -1 where l's layer is later;
    lent_density: float32 [P, M, LH]. oracle_cost, oracle_recall: float32 [P, LH, G], of each head's
    own exact mask without its estimate. row_estimate: float64 [P], of one last-row estimate.
    layers, numbers: int32 [LH]."""

    layers: Ints
    numbers: Ints
    candidates: tuple[Candidate, ...]
    lending: tuple[Lending, ...]
    oracle_gammas: tuple[float, ...]
    prompts: tuple[PromptRecord, ...]
    cost: Floats
    recall: Floats
    lent_recall: Halves
    lent_density: Floats
    oracle_cost: Floats
    oracle_recall: Floats
    row_estimate: npt.NDArray[np.float64]

    @property
    def everyone(self) -> Rows:
        """Every prompt."""
        return np.arange(len(self.prompts))

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of the prompts, sorted."""
        return tuple(sorted({prompt.task for prompt in self.prompts}))

    def of_task(self, rows: Rows, task: str) -> Rows:
        """Those of some prompts that are of a task."""
        return np.array([row for row in rows if self.prompts[row].task == task], dtype=np.intp)

    def columns(self, assignment: str) -> list[int]:
        """The candidates of one kind."""
        return [k for k, one in enumerate(self.candidates) if one.assignment == assignment]


def length_class(tokens: int) -> int:
    """The power of two that a prompt's length is closest under or at."""
    return 1 << (tokens - 1).bit_length()


class TableBuilder:
    """Collects shards into `PlanTables`; their order does not count."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._lending = lending_of(config)
        self._shards: dict[str, tuple[PromptRecord, tuple[npt.NDArray, ...], float]] = {}

    def add(self, shard: PromptShard) -> None:
        """Take one prompt."""
        dense = np.ones((shard.num_heads, 1), dtype=np.float32)
        recalls, densities = [shard.recall_exact], [shard.density]
        if any(one.column == self._base for one in self._lending if one.column is not None):
            recalls.append(shard.recall_sampled)
            densities.append(shard.sampled_density)
        if shard.lent_recall is not None and shard.lent_density is not None:
            recalls.extend(shard.lent_recall)
            densities.extend(shard.lent_density)
        if shard.oracle_density is not None and shard.oracle_recall is not None:
            oracle = (shard.oracle_density, shard.oracle_recall)
        else:
            oracle = (shard.density[:, None], np.diag(shard.recall_exact)[:, None])
        arrays = (
            np.hstack([shard.candidate_cost, dense]),
            np.hstack([shard.candidate_recall, dense]),
            np.stack([recall.astype(np.float16) for recall in recalls]),
            np.stack(densities).astype(np.float32),
            *oracle,
        )
        self._shards[shard.prompt.sha256] = (shard.prompt, arrays, row_estimate_cost(shard.grid))

    def by_length(self) -> dict[int, frozenset[str]]:
        """The prompts' sha256 by length class, ascending."""
        classes: dict[int, set[str]] = {}
        for name, (prompt, _, _) in self._shards.items():
            classes.setdefault(length_class(prompt.tokens), set()).add(name)
        return {length: frozenset(classes[length]) for length in sorted(classes)}

    def result(self, names: frozenset[str] | None = None) -> PlanTables:
        """The tables of what was added, at least one prompt, or of some of it by sha256."""
        config = self._config
        refs = full_attention_heads(config.fingerprint)
        found = [
            self._shards[name] for name in sorted(self._shards) if names is None or name in names
        ]
        stacked = [np.stack(parts) for parts in zip(*(one[1] for one in found), strict=True)]
        return PlanTables(
            layers=np.array([ref.layer for ref in refs], dtype=np.int32),
            numbers=np.array([ref.head for ref in refs], dtype=np.int32),
            candidates=config.candidates,
            lending=self._lending,
            oracle_gammas=config.oracle_gammas or (config.gamma,),
            prompts=tuple(one[0] for one in found),
            cost=stacked[0],
            recall=stacked[1],
            lent_recall=stacked[2],
            lent_density=stacked[3],
            oracle_cost=stacked[4],
            oracle_recall=stacked[5],
            row_estimate=np.array([one[2] for one in found]),
        )

    @property
    def _base(self) -> int | None:
        return _column(self._config.candidates, self._config.gamma, self._config.sample_stride)


def lending_of(config: RunConfig) -> tuple[Lending, ...]:
    """The masks whose borrowers a run has measured, in the order of the tables.

    A sampled mask whose lender was not measured as a candidate cannot be lent.
    """
    lending = [Lending(gamma=config.gamma, column=None)]
    base = _column(config.candidates, config.gamma, config.sample_stride)
    if base is not None:
        lending.append(Lending(gamma=config.gamma, column=base))
    for one in config.lending:
        column = _column(config.candidates, one.gamma, one.stride)
        if column is None:
            raise UsageError(f"the run lends gamma {one.gamma:g}, stride {one.stride} unmeasured")
        lending.append(Lending(gamma=one.gamma, column=column))
    return tuple(lending)


def load_tables(run: Run, *, min_length: int = 0, progress: Progress | None = None) -> PlanTables:
    """The tables of a run's prompts of at least `min_length` tokens and 16 block rows.

    Raises UsageError where there is none, CorruptArtefactError.
    """
    builder, size = TableBuilder(run.config), run.config.block_size
    least = max(min_length, (MIN_BLOCK_ROWS - 1) * size + 1)
    wanted = {prompt.sha256 for prompt in run.config.prompts if prompt.tokens >= least}
    entries = [entry for entry in run.entries if entry.state == "done"]
    if not wanted & {entry.unit for entry in entries}:
        raise UsageError(
            f"no prompt of {run.path} has {least} tokens",
            hint="lower the minimum, or calibrate on longer prompts",
        )
    for number, shard in enumerate(run.shards(), start=1):
        if shard.prompt.sha256 in wanted:
            builder.add(shard)
        if progress is not None:
            progress(number, len(entries))
    return builder.result()


def similarity_of(run: Run, progress: Progress | None = None) -> Similarity | None:
    """Jaccard of all pairs of heads over a run's prompts; None where all of them are too short."""
    accumulator = SimilarityAccumulator(len(full_attention_heads(run.fingerprint)))
    compared = 0
    for number, shard in enumerate(run.shards(), start=1):
        compared += accumulator.add(shard.masks, shard.grid.num_rows, shard.prompt.task)
        if progress is not None:
            progress(number, len(run.entries))
    return accumulator.result() if compared else None


def _column(candidates: Sequence[Candidate], gamma: float, stride: int) -> int | None:
    for number, one in enumerate(candidates):
        if (one.assignment, one.gamma, one.stride) == ("sampled", gamma, stride):
            return number
    return None
