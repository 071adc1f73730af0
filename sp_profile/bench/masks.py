"""Block masks to measure on: exact densities, and who shares what.

A mask is made from scores: the forced blocks (first column and diagonal) come first, then the
blocks with the highest scores until the density is met exactly. Random scores give uniform masks,
structured ones give bands, columns and diagonals; heads with the same scores share their mask.
Legend: H query heads, R x C blocks (square: every query of the sequence is there).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import UsageError

MASK_KINDS = ("random", "shared", "neighbours", "pivot", "planted")
_SHAPES = ("band", "columns", "diagonals", "mixed")


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskCase:
    """A mask to measure.

    name: of the kind, such as "random". mask: bool [1, H, R, C], future blocks off, forced blocks
    on. dense: bool [1, H], heads that take every block, whose rows of `mask` are all causal blocks.
    wanted: the density that was asked for; lower ones than the forced blocks cannot be met.
    """

    name: str
    mask: Tensor
    dense: Tensor
    wanted: float

    def blocks(self) -> int:
        """Blocks computed over all heads."""
        return int(self.mask.sum())


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskMaker:
    """Makes masks for one grid and one set of heads.

    group: query heads of one KV head. cluster: neighbouring heads that share under `neighbours`
    and `planted`. seed: of every random choice.
    """

    grid: BlockGrid
    heads: int
    group: int
    cluster: int
    seed: int
    device: torch.device

    def make(self, kind: str, density: float) -> tuple[MaskCase, ...]:
        """The cases of a kind at a density in (0, 1]; `pivot` makes two that compute equally much.

        Raises UsageError for an unknown kind or a density outside of (0, 1].
        """
        require_density(density)
        if kind == "pivot":
            return self._pivot(density)
        per_head = self._count(density)
        if kind == "random":
            scores = self._noise(self.heads)
        elif kind == "shared":
            scores = self._noise(-(-self.heads // self.group))
            scores = scores.repeat_interleave(self.group, 0)[: self.heads]
        elif kind == "neighbours":
            scores = self._noise(-(-self.heads // self.cluster))
            scores = scores.repeat_interleave(self.cluster, 0)[: self.heads]
        elif kind == "planted":
            scores = self._planted()
        else:
            raise UsageError(f"unknown masks {kind!r}", hint=", ".join(MASK_KINDS))
        mask = self._choose(scores, [per_head] * self.heads)
        return (self._case(kind, mask, density),)

    def _pivot(self, density: float) -> tuple[MaskCase, MaskCase]:
        """One dense head among sparse ones, and as many blocks spread evenly over the heads."""
        sparse, causal = self._count(density), self.grid.num_causal_blocks
        dense = torch.zeros(1, self.heads, dtype=torch.bool, device=self.device)
        dense[:, self.heads // 2] = True
        counts = [causal if flag else sparse for flag in dense[0].tolist()]
        noise = self._noise(self.heads)
        pivot = self._choose(noise, counts)
        each, left = divmod(sum(counts), self.heads)
        even = self._choose(noise, [each + (head < left) for head in range(self.heads)])
        spread = sum(counts) / self.heads / causal
        return (
            MaskCase(name="pivot", mask=pivot, dense=dense, wanted=density),
            MaskCase(name="pivot-even", mask=even, dense=torch.zeros_like(dense), wanted=spread),
        )

    def _planted(self) -> Tensor:
        """float32 [H, R, C]: clusters of heads that are local bands, columns, diagonals or a mix.

        A band takes the nearest diagonals; columns and diagonals are taken whole, in random order;
        a mix takes the three in turn. The first column (the sink) is forced anyway.
        """
        cols = self.grid.num_cols
        places = torch.arange(cols, device=self.device)
        distance = places[:, None] - places
        near = 1 - distance / cols
        generator = self._generator()
        heads = []
        for number in range(-(-self.heads // self.cluster)):
            shape = _SHAPES[number % len(_SHAPES)]
            order = [torch.rand(cols, generator=generator, device=self.device) for _ in range(2)]
            columns = order[0][None, :].expand(cols, cols)
            diagonals = order[1][distance.clamp(min=0)]
            mixed = torch.stack([near**8, columns, diagonals]).amax(0)
            scores = {"band": near, "columns": columns, "diagonals": diagonals, "mixed": mixed}
            heads.extend([scores[shape]] * self.cluster)
        return torch.stack(heads[: self.heads])

    def _noise(self, count: int) -> Tensor:
        shape = (count, self.grid.num_rows, self.grid.num_cols)
        return torch.rand(shape, generator=self._generator(), device=self.device)

    def _generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self.seed)

    def _count(self, density: float) -> int:
        """Blocks of one head, never fewer than the forced ones."""
        forced = 2 * self.grid.num_rows - 1
        return max(round(density * self.grid.num_causal_blocks), forced)

    def _choose(self, scores: Tensor, counts: list[int]) -> Tensor:
        """bool [1, H, R, C]: of each head the counts[h] causal blocks with the highest scores."""
        causal = self.grid.causal_mask(self.device)
        forced = self.grid.diagonal_mask(self.device)
        forced[:, 0] = True
        places = causal.flatten().nonzero().flatten()
        mask = torch.zeros_like(scores, dtype=torch.bool)
        for head, count in enumerate(counts):  # one at a time: a sort of all heads takes gigabytes
            ranked = scores[head].masked_fill(forced, torch.inf).flatten()[places]
            best = ranked.topk(count, sorted=False).indices
            mask[head].view(-1)[places[best]] = True
        return mask[None]

    def _case(self, name: str, mask: Tensor, density: float) -> MaskCase:
        every = mask.new_full((1, self.heads), density >= 1)
        return MaskCase(name=name, mask=mask, dense=every, wanted=density)


def require_density(density: float) -> None:
    """Refuse a share of the causal blocks outside of (0, 1], NaN included: UsageError."""
    if not 0 < density <= 1:
        raise UsageError(f"density {density} is not in (0, 1]", hint="try 0.1")


def stretch(mask: Tensor, num_cols: int) -> Tensor:
    """A recorded mask bool [..., C0, C0] on a grid of `num_cols` blocks, bool [..., C, C].

    A shorter grid takes the leading corner, which is the mask of that prefix. A longer one repeats
    every block in both directions: densities and shapes stay, and neighbouring rows grow alike.
    """
    recorded = mask.shape[-1]
    if num_cols <= recorded:
        return mask[..., :num_cols, :num_cols]
    places = torch.arange(num_cols, device=mask.device) * recorded // num_cols
    return mask.index_select(-2, places).index_select(-1, places)
