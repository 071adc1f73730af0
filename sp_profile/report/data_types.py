"""What a report shows, as frozen dataclasses: the page and the figures draw from the same numbers.

Legend: LH heads in the profile's (layer, head) order, n cells along a picture's side (at most 32).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sp_profile.curves import Curves
from sp_profile.eval.results import EvalSummary
from sp_profile.tables import HeadRow, SimilarityColumns
from sp_runtime.profile import HeadRef, Profile, PromptRecord, full_attention_heads

MAX_PROMPTS = 3
MAX_SIDE = 32
"""The gallery's bounds: prompts, and cells along a picture's side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryPrompt:
    """The pictures of every head on one prompt. A cell stands for several block rows and columns.

    masks: uint8 [LH, n, n], 255 times the share of the cell's causal blocks that are in the
    gamma-mask; 0 above the diagonal.
    mass: uint8 [LH, n, n], 255 times the square root of the attention mass that the cell's queries
    put on its keys, so a row's squares sum to 1; None where the run did not record it.
    density: float32 [LH], of the gamma-mask. jaccard_anchor: float32 [LH], of the full masks.
    recall_anchor: float32 [LH], attention mass of the head inside its anchor's mask; None without
    the run. The last two are NaN for a head without an anchor, or that is one.
    text: of the prompt, where it was asked for.
    """

    prompt: PromptRecord
    side: int
    masks: NDArray[np.uint8]
    mass: NDArray[np.uint8] | None
    density: NDArray[np.float32]
    jaccard_anchor: NDArray[np.float32]
    recall_anchor: NDArray[np.float32] | None
    text: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantiles:
    """Of a sample of Jaccard indices."""

    low: float
    lower: float
    median: float
    upper: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class SpreadGroup:
    """The Jaccard of pairs of heads over some prompts: one prompt, a task's, or a length's.

    within: over pairs of one cluster, None where there is none; all: over every pair. The
    quantiles are 0.05, 0.25, 0.5, 0.75 and 0.95. correlation: Pearson's, over all pairs, of the
    mean over these prompts with the mean over the other ones; None where there are no others.
    """

    kind: Literal["prompt", "task", "length"]
    label: str
    prompts: int
    within: Quantiles | None
    all: Quantiles
    correlation: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Dendrogram:
    """Average linkage of 1 - Jaccard, as SciPy draws it.

    order: int32 [LH], head indices from left to right. x: float64 [LH - 1, 4], the corners of each
    joint, where the leaf at place i stands at i. y: float64 [LH - 1, 4], distances in [0, 1].
    """

    order: NDArray[np.int32]
    x: NDArray[np.float64]
    y: NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportData:
    """Everything a report is made from.

    refs: the full-attention heads. heads: the rows of heads.parquet, empty where nothing was
    measured. similarity, dendrogram: None where nothing was measured. gallery, spread: empty where
    there are no masks. curves: of the run; evaluation: its summary; None where not given.
    has_run: whether a run was given.
    """

    profile: Profile
    heads: tuple[HeadRow, ...]
    similarity: SimilarityColumns | None
    dendrogram: Dendrogram | None
    gallery: tuple[GalleryPrompt, ...]
    spread: tuple[SpreadGroup, ...]
    curves: Curves | None
    evaluation: EvalSummary | None
    has_run: bool

    @property
    def refs(self) -> tuple[HeadRef, ...]:
        return full_attention_heads(self.profile.model)
