"""Queries, keys and values to measure on: random ones, and ones with planted attention patterns."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from sp_profile.bench.check import Inputs
from sp_runtime.block_index import BlockGrid
from sp_runtime.errors import UsageError


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerShape:
    """One attention layer: tokens, heads, head_dim, block size in tokens, torch dtype by name."""

    length: int
    heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    dtype: str

    def __post_init__(self) -> None:
        for name in ("length", "heads", "kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)} is under 1")
        require_groups(self.heads, self.kv_heads)

    @property
    def grid(self) -> BlockGrid:
        return BlockGrid(q_len=self.length, kv_len=self.length, block_size=self.block_size)

    @property
    def operations_per_block(self) -> int:
        """Floating-point operations of a whole block: Q K^T and P V, a multiply-add is two."""
        return 4 * self.block_size**2 * self.head_dim


def require_groups(heads: int, kv_heads: int) -> None:
    """Refuse query heads that the KV heads do not share evenly: UsageError."""
    if heads % kv_heads:
        raise UsageError(
            f"{heads} query heads are no multiple of {kv_heads} KV heads",
            hint="take as many KV heads as query heads, or a divisor of them",
        )


def random_inputs(shape: LayerShape, device: torch.device, seed: int) -> Inputs:
    """Standard normal q, k, v in the layout of a model: memory is [N, heads, D]."""
    generator = torch.Generator(device).manual_seed(seed)
    dtype = getattr(torch, shape.dtype)

    def draw(heads: int) -> Tensor:
        size = (1, shape.length, heads, shape.head_dim)
        return torch.randn(size, generator=generator, device=device, dtype=dtype).transpose(1, 2)

    return Inputs(
        q=draw(shape.heads),
        k=draw(shape.kv_heads),
        v=draw(shape.kv_heads),
        grid=shape.grid,
        scale=shape.head_dim**-0.5,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Planting:
    """Where the attention of planted inputs goes.

    columns: single tokens that every later query attends to, at places of each KV head's own.
    band: width in tokens of the local band. sink_mass, column_mass, band_mass: shares of a late
    query's attention (the rest is spread over all keys).
    """

    columns: int
    band: int = 128
    sink_mass: float = 0.07
    column_mass: float = 0.5
    band_mass: float = 0.4


def planted_inputs(
    shape: LayerShape, planting: Planting, device: torch.device, seed: int
) -> Inputs:
    """q, k, v whose attention is a sink, a local band and some columns, in every head.

    One direction of the head space belongs to sink and columns: every query has it, and of the keys
    only those. The others hold rotations by the position at random frequencies of about 1 / band,
    as rotary embedding makes them, so that q_i k_j falls off with |i - j| like a Gaussian. Scores
    are set so that the masses of `planting` hold for the last query. Noise keeps heads apart.
    Raises UsageError where there are more columns than tokens, or as `require_plantable`.
    """
    if planting.columns >= shape.length:
        raise UsageError(f"{planting.columns} columns do not fit {shape.length} tokens")
    generator = torch.Generator(device).manual_seed(seed)
    dtype, dim, length = getattr(torch, shape.dtype), shape.head_dim, shape.length
    pairs = _pairs(dim)
    scale = dim**-0.5
    position = torch.arange(length, device=device, dtype=torch.float32)
    scores = _scores(planting, length, pairs)
    if scores is None:
        raise _too_narrow(shape, planting)
    q = torch.zeros(1, length, shape.heads, dim, device=device, dtype=dtype)
    k = torch.zeros(1, length, shape.kv_heads, dim, device=device, dtype=dtype)
    for kv_head in range(shape.kv_heads):
        frequency = torch.randn(pairs, generator=generator, device=device) / planting.band
        angle = position[:, None] * frequency
        wave = torch.cat([angle.cos(), angle.sin()], 1) * (scores.band / scale / pairs) ** 0.5
        places = torch.randperm(length - 1, generator=generator, device=device)
        marked = torch.zeros(length, device=device)
        marked[1 + places[: planting.columns]] = scores.column
        marked[0] = scores.sink
        k[0, :, kv_head, 0] = (marked / scale**0.5).to(dtype)
        k[0, :, kv_head, 2 : 2 + 2 * pairs] = wave.to(dtype)
        for head in range(shape.heads // shape.kv_heads):
            row = kv_head * (shape.heads // shape.kv_heads) + head
            noise = 0.05 * torch.randn(wave.shape, generator=generator, device=device)
            q[0, :, row, 0] = scale**-0.5
            q[0, :, row, 2 : 2 + 2 * pairs] = (wave + noise).to(dtype)
    v = torch.randn(1, length, shape.kv_heads, dim, generator=generator, device=device, dtype=dtype)
    return Inputs(
        q=q.transpose(1, 2),
        k=k.transpose(1, 2),
        v=v.transpose(1, 2),
        grid=shape.grid,
        scale=scale,
    )


def require_plantable(shape: LayerShape) -> None:
    """Refuse, before any work, heads too narrow for `planted_inputs`: UsageError.

    How many dimensions it takes grows with the length: 12 for 1,000 tokens, 22 for a million.
    """
    planting = Planting(columns=0)
    if _scores(planting, shape.length, _pairs(shape.head_dim)) is None:
        raise _too_narrow(shape, planting)


def _too_narrow(shape: LayerShape, planting: Planting) -> UsageError:
    found = (_scores(planting, shape.length, pairs) for pairs in itertools.count(1))
    least = 2 + 2 * next(pairs for pairs, scores in enumerate(found, 1) if scores is not None)
    return UsageError(
        f"head_dim {shape.head_dim} is too small to plant attention in {shape.length} tokens",
        hint=f"the least that does is {least}",
    )


def _pairs(head_dim: int) -> int:
    """Rotations that a head has room for beside the direction of sink and columns."""
    return (head_dim - 2) // 2


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scores:
    sink: float
    column: float
    band: float


def _scores(planting: Planting, length: int, pairs: int) -> _Scores | None:
    """Scores q k * scale that give the masses, by fixed point: the band's side lobes count too.

    None where few pairs make these grow faster than the band, so that no score is enough.
    """
    if pairs < 1:
        return None
    rest = 1 - planting.sink_mass - planting.column_mass - planting.band_mass
    band = 8.0
    for _ in range(20):
        # exp of a sum of random waves, of variance band^2 / (2 pairs) far from the band.
        try:
            background = length * math.exp(band**2 / (4 * pairs))
        except OverflowError:
            return None
        total = background / rest
        # Half a Gaussian bell in |i - j|, raised to the exponential, is about this wide.
        width = planting.band * math.sqrt(math.pi / (2 * max(band, 1.0)))
        band = 0.5 * band + 0.5 * math.log(max(planting.band_mass * total / width, 1.1))
    if not math.isfinite(total):
        return None
    column = math.log(max(planting.column_mass * total / max(planting.columns, 1), 1.1))
    return _Scores(sink=math.log(planting.sink_mass * total), column=column, band=band)
