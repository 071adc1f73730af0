"""MInference's offline search: for every head the fixed pattern that keeps most attention mass.

Source: MInference (arXiv 2407.02490): A-shape (100, 800), four sizes of vertical-and-slash, and
block-sparse, of which the paper takes 100 blocks of 64 tokens. Sizes are absolute, and no candidate
is charged for what it computes: on prompts that a candidate covers whole it keeps everything, so
the search belongs on long prompts. Equal mass goes to the candidate that computes less.

Where this differs: exact block mass of every query (the authors' recall is of the last 64 queries),
mean over several prompts (the authors take one), candidates as `sp_runtime.patterns.minference`
runs them; A-shape and block-sparse heads keep their pattern (the authors' code turns them into
vertical-and-slash).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sp_profile.head_search import Progress, SearchConfig, measure_heads
from sp_runtime.errors import UsageError
from sp_runtime.patterns.base import LayerInputs
from sp_runtime.patterns.head_tables import ShapeGroup
from sp_runtime.patterns.minference import (
    a_shape_mask,
    block_sparse_mask,
    fixed_vertical_slash_mask,
)
from sp_runtime.profile import (
    HeadShape,
    Profile,
    PromptRecord,
    ShapeTable,
    full_attention_heads,
)
from sp_runtime.profile_types import ShapeKind

Matrix = npt.NDArray[np.float64]
BLOCK_SPARSE_TOKENS = 100 * 64
_EQUAL = 6  # decimals up to which two masses are the same


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeCandidate:
    """A pattern that every head is tried with; sizes as in `HeadShape`."""

    kind: ShapeKind
    vertical: int
    slash: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeSearch:
    """What a search found.

    table: the chosen patterns. prompts: that it ran on. mass, density: mean over heads and
    prompts of what the chosen patterns keep, and of the blocks that they compute.
    covered: candidates that hold every block of every prompt, so that they are no choice.
    """

    table: ShapeTable
    prompts: tuple[PromptRecord, ...]
    mass: float
    density: float
    covered: tuple[ShapeCandidate, ...]


def default_candidates(top_k: int = BLOCK_SPARSE_TOKENS) -> tuple[ShapeCandidate, ...]:
    """The paper's. top_k: key tokens a query block of block-sparse."""
    if top_k < 1:
        raise UsageError(f"top_k {top_k} is under 1", hint="in tokens")
    crossed = ((30, 800), (100, 750), (500, 700), (3500, 100))
    return (
        ShapeCandidate(kind="a_shape", vertical=100, slash=800),
        *(ShapeCandidate(kind="vertical_slash", vertical=v, slash=s) for v, s in crossed),
        ShapeCandidate(kind="block_sparse", vertical=top_k, slash=0),
    )


def search_shapes(
    profile: Profile,
    config: SearchConfig,
    progress: Progress,
    *,
    candidates: Sequence[ShapeCandidate] | None = None,
) -> ShapeSearch:
    """Choose a pattern for every full-attention head; raises as `measure_heads`."""
    candidates = default_candidates() if candidates is None else tuple(candidates)
    cover = profile.point().slash_cover
    sums: dict[str, dict[int, Matrix]] = {}

    def observe(prompt: PromptRecord, inputs: LayerInputs, mass: Tensor) -> None:
        found = _measure(inputs, mass, candidates, cover)
        sums.setdefault(prompt.sha256, {})[inputs.layer] = found

    prompts = measure_heads(profile, config, observe, progress)
    # [prompts, 2, LH, K]: the order of the hashes decides the order of summing.
    measured = np.stack(
        [np.concatenate([sums[p.sha256][at] for at in sorted(sums[p.sha256])], 1) for p in prompts]
    )
    mass, density = measured.mean(0)
    chosen = choose(mass, density)
    heads = tuple(
        HeadShape(
            layer=ref.layer,
            head=ref.head,
            kind=candidates[pick].kind,
            vertical=candidates[pick].vertical,
            slash=candidates[pick].slash,
            score=round(float(min(mass[number, pick], 1.0)), 6),
        )
        for number, (ref, pick) in enumerate(
            zip(full_attention_heads(profile.model), chosen.tolist(), strict=True)
        )
    )
    rows = np.arange(len(heads))
    whole = measured[:, 1].min(axis=(0, 1)) >= 1.0
    return ShapeSearch(
        table=ShapeTable(source=_source(prompts), heads=heads),
        prompts=prompts,
        mass=float(mass[rows, chosen].mean()),
        density=float(density[rows, chosen].mean()),
        covered=tuple(c for c, full in zip(candidates, whole.tolist(), strict=True) if full),
    )


def choose(mass: Matrix, density: Matrix) -> npt.NDArray[np.int64]:
    """int64 [LH]: of each row the candidate of most mass, then of least density, then the first.

    mass, density: float64 [LH, K].
    """
    order = np.lexsort((np.arange(mass.shape[1])[None].repeat(len(mass), 0), density,
                        -mass.round(_EQUAL)), axis=-1)  # fmt: skip
    return order[:, 0]


def _measure(
    inputs: LayerInputs, mass: Tensor, candidates: Sequence[ShapeCandidate], cover: str
) -> Matrix:
    """float64 [2, H, K]: mass kept and density of every candidate; mass [H, R, C]."""
    grid, heads = inputs.grid, torch.arange(inputs.num_heads, device=mass.device)
    estimate = inputs.kernels.last_block(inputs.q, inputs.k, grid, scale=inputs.scale)
    found = []
    for candidate in candidates:
        group = ShapeGroup(
            heads=heads,
            vertical=torch.full_like(heads, candidate.vertical),
            slash=torch.full_like(heads, candidate.slash),
        )
        if candidate.kind == "a_shape":
            mask = a_shape_mask(inputs, group)
        elif candidate.kind == "vertical_slash":
            mask = fixed_vertical_slash_mask(inputs, estimate, group, cover)  # type: ignore[arg-type]
        else:
            mask = block_sparse_mask(inputs, group)
        kept = (mass * mask[0]).sum((-2, -1), dtype=torch.float64) / grid.num_rows
        blocks = mask[0].sum((-2, -1)).double() / grid.num_causal_blocks
        found.append(torch.stack([kept, blocks]))
    return torch.stack(found, -1).cpu().numpy()


def _source(prompts: tuple[PromptRecord, ...]) -> str:
    tokens = sorted({prompt.tokens for prompt in prompts})
    lengths = f"{tokens[0]}" if len(tokens) == 1 else f"{tokens[0]} to {tokens[-1]}"
    return f"searched on {len(prompts)} calibration prompts of {lengths} tokens"
