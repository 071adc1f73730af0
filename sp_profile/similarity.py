"""Pairwise Jaccard similarity of the heads' block masks, and its statistics over prompts.

Source: the clustering half of SharePrefill (arXiv 2505.19578), with the Jaccard index of the
gamma-masks in the place of distances between autoencoder latents.

A packed mask holds the T = n(n+1)/2 causal blocks of n block rows in row-major lower-triangular
order, eight a byte (numpy.packbits, big-endian bits, zero padding).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sp_profile.accumulators import ExactMean
from sp_runtime.errors import UsageError

MIN_BLOCK_ROWS = 16
# Bits of one slice for all heads together: 32 Mi of float32 are 128 MiB.
_SLICE_BITS = 1 << 25
# A count of at most 2**24 ones is exact in float32.
_MAX_SLICE_BLOCKS = 1 << 24
# Only products on and above the diagonal are computed, in bands of this many heads.
_TILE_HEADS = 128

Bytes = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairwiseJaccard:
    """Jaccard index of every pair of heads on one prompt, float64 [LH, LH] in [0, 1].

    full: over all causal blocks. core: without column 0 and the diagonal, which vertical-slash
    covers anyway. Two empty sets give 1.
    """

    full: Matrix
    core: Matrix


@dataclass(frozen=True, kw_only=True, slots=True)
class Similarity:
    """Statistics of the pairwise Jaccard over prompts; every matrix is float64 [LH, LH].

    mean, minimum, std: of the full Jaccard; core_mean: of the core Jaccard; prompts: how many
    entered. task_means and length_means: the mean by task and by number of block rows (rounded up
    to a power of two), sorted by key.
    """

    mean: Matrix
    minimum: Matrix
    std: Matrix
    core_mean: Matrix
    prompts: int
    task_means: tuple[tuple[str, Matrix], ...]
    length_means: tuple[tuple[int, Matrix], ...]

    def task_correlation(self) -> float | None:
        """Lowest Pearson correlation of two tasks' means over head pairs; None under two tasks."""
        return _lowest_correlation([matrix for _, matrix in self.task_means])

    def length_correlation(self) -> float | None:
        """Lowest Pearson correlation of two length classes; None under two classes."""
        return _lowest_correlation([matrix for _, matrix in self.length_means])


def pairwise_jaccard(
    masks: Bytes, num_rows: int, *, device: torch.device | str = "cpu"
) -> PairwiseJaccard:
    """Jaccard of all pairs of packed masks, uint8 [LH, ceil(T/8)], of `num_rows` block rows.

    Intersections are matrix products of 0/1 slices in float32, exact within a slice, summed in
    float64; memory is a few slices beside the input and four [LH, LH] matrices.
    Raises UsageError where the shape does not fit `num_rows`.
    """
    num_blocks = num_rows * (num_rows + 1) // 2
    if masks.dtype != np.uint8 or masks.ndim != 2 or masks.shape[1] != -(-num_blocks // 8):
        raise UsageError(
            f"packed masks are {masks.dtype} {masks.shape}, expected uint8 "
            f"[heads, {-(-num_blocks // 8)}] for {num_rows} block rows"
        )
    # A shard's arrays are read-only, which torch does not know; so they are copied.
    packed = torch.from_numpy(np.require(masks, requirements=["C", "W"])).to(device)
    shared = _intersections(packed)
    edge = _edge_bits(packed, num_rows)
    return PairwiseJaccard(
        full=_jaccard(shared),
        core=_jaccard(shared - (edge @ edge.T).double()),
    )


class SimilarityAccumulator:
    """Statistics of the pairwise Jaccard, prompt by prompt, in memory that does not grow with them
    (it grows with the number of tasks). The order of the prompts does not change the result."""

    def __init__(self, num_heads: int, *, device: torch.device | str = "cpu") -> None:
        self._shape = (num_heads, num_heads)
        self._device = device
        self._full = ExactMean(self._shape, spread=True)
        self._core = ExactMean(self._shape)
        self._tasks: dict[str, ExactMean] = {}
        self._lengths: dict[int, ExactMean] = {}

    def add(self, masks: Bytes, num_rows: int, task: str) -> bool:
        """Take one prompt's packed masks; False, and nothing taken, under 16 block rows."""
        if num_rows < MIN_BLOCK_ROWS:
            return False
        jaccard = pairwise_jaccard(masks, num_rows, device=self._device)
        self._full.add(jaccard.full)
        self._core.add(jaccard.core)
        length = 1 << (num_rows - 1).bit_length()
        self._tasks.setdefault(task, ExactMean(self._shape)).add(jaccard.full)
        self._lengths.setdefault(length, ExactMean(self._shape)).add(jaccard.full)
        return True

    def result(self) -> Similarity:
        """The statistics so far; UsageError if no prompt was long enough."""
        if not self._full.count:
            raise UsageError(
                f"no prompt has {MIN_BLOCK_ROWS} block rows, so heads cannot be compared",
                hint=f"calibrate on prompts of at least {MIN_BLOCK_ROWS} x block size tokens",
            )
        return Similarity(
            mean=self._full.mean(),
            minimum=self._full.minimum(),
            std=self._full.std(),
            core_mean=self._core.mean(),
            prompts=self._full.count,
            task_means=tuple((task, self._tasks[task].mean()) for task in sorted(self._tasks)),
            length_means=tuple(
                (rows, self._lengths[rows].mean()) for rows in sorted(self._lengths)
            ),
        )


def _intersections(packed: Tensor) -> Tensor:
    """float64 [LH, LH], number of blocks on in both heads."""
    heads = packed.shape[0]
    step = max(1, min(_SLICE_BITS // max(heads, 1), _MAX_SLICE_BLOCKS) // 8)
    shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=packed.device)
    total = torch.zeros(heads, heads, dtype=torch.float64, device=packed.device)
    for part in packed.split(step, dim=1):
        bits = ((part[:, :, None] >> shifts) & 1).flatten(1).float()
        for start in range(0, heads, _TILE_HEADS):
            stop = start + _TILE_HEADS
            total[start:stop, start:] += bits[start:stop] @ bits[start:].T
    return total.triu() + total.triu(1).T


def _edge_bits(packed: Tensor, num_rows: int) -> Tensor:
    """float32 [LH, 2n - 1], the bits of column 0 and of the diagonal."""
    rows = torch.arange(num_rows, device=packed.device)
    starts = rows * (rows + 1) // 2
    positions = torch.cat([starts, (starts + rows)[1:]])
    shifts = (7 - positions % 8).to(torch.uint8)
    return ((packed[:, positions // 8] >> shifts) & 1).float()


def _jaccard(shared: Tensor) -> Matrix:
    """Intersections float64 [LH, LH] -> Jaccard; the diagonal holds each set's size."""
    sizes = shared.diagonal()
    union = sizes[:, None] + sizes[None, :] - shared
    # Sizes and unions are whole numbers, so an empty union is exactly 0.
    result = torch.where(union > 0, shared / union.clamp(min=1), torch.ones_like(shared))
    return np.asarray(result.cpu().numpy(), dtype=np.float64)


def _lowest_correlation(means: list[Matrix]) -> float | None:
    """Lowest pairwise Pearson correlation of the off-diagonal entries; a constant one gives 0."""
    if len(means) < 2 or means[0].shape[0] < 3:
        return None
    pairs = np.triu_indices(means[0].shape[0], 1)
    rows = np.stack([matrix[pairs] for matrix in means])
    rows -= rows.mean(1, keepdims=True)
    norms = np.linalg.norm(rows, axis=1)
    rows /= np.where(norms > 0, norms, 1.0)[:, None]
    return float((rows @ rows.T)[np.triu_indices(len(means), 1)].min())
