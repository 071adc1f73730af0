"""What masks, corrections and carried masks do to the attention of one layer; see beyond.py.

A head's output under any block mask is a ratio of sums of what its blocks add, so one pass over
the blocks measures every mask. Legend: G query heads of a KV head, R block rows, C key blocks, T
queries of a block row, E of them compared, D head_dim, W sources of masks, L = len(GAMMAS).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sp_runtime.patterns.masks import gamma_masks
from sp_runtime.selection import forced_mask

GAMMAS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)
STRIDES = (16, 32, 64)
ERROR_STRIDE = 5  # queries whose output is compared; odd, so that they are not those sampled
LOCAL_BLOCKS = 1
WEIGHTS = ("|v|", "|v-mean|")
# "key": one pseudo key and value a left-out block, their means, counted as often as it has keys.
# "scaled": the same, its weight scaled by the block's estimated mass over what the mean key has of
# the same queries. "mean": the estimated mass of what is left out goes to the mean values of its
# blocks, after the kernel.
CORRECTIONS = ("key", "scaled", "mean")
MAX_SCALE = 16.0
SOURCES = (
    "exact", *(f"exact*{w}" for w in WEIGHTS), "s16", *(f"s16*{w}" for w in WEIGHTS), "s32", "s64",
)  # fmt: skip
CORRECTED = ("exact", "s16")
METHODS = (*SOURCES, *(f"{source}+{kind}" for kind in CORRECTIONS for source in CORRECTED))
_PLACES = [SOURCES.index(name) for name in CORRECTED]


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """Of every head at every gamma, float32 [H, L]: blocks computed over causal blocks, attention
    mass kept, relative L2 error of the output (None where it was not measured)."""

    density: Tensor
    recall: Tensor
    error: Tensor | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerResult:
    """One layer: its curves by method, and block mass [H, R, C], exact and sampled at 16."""

    curves: dict[str, Curve]
    exact: Tensor
    sampled: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One block row of G heads: what every key block adds to its queries.

    dense: [G, T, D], the output of dense attention. shares: [G, C, T], the attention of each query
    on each block. parts, pseudo: [G, C, E, D + 1], for E of the queries the sums of weight *
    (value, 1), the weights divided by their dense sum; pseudo has the mean key's weight times the
    number of keys, and the mean value, in place of the block's own. key_shares: [G, C, T], its
    weights. mean_values: [C, D].
    """

    dense: Tensor
    shares: Tensor
    parts: Tensor
    pseudo: Tensor
    key_shares: Tensor
    mean_values: Tensor

    def outputs(self, masks: Tensor) -> Tensor:
        """masks [G, K, C] -> outputs [G, K, E, D] of the blocks that each keeps."""
        return _normalised(_summed(masks, self.parts))

    def with_keys(self, masks: Tensor, scale: Tensor | None = None) -> Tensor:
        """The same with the pseudo keys of the blocks left out, scaled by [G, K, C]."""
        left = 1 - masks if scale is None else (1 - masks) * scale
        return _normalised(_summed(masks, self.parts) + _summed(left, self.pseudo))

    def with_means(self, masks: Tensor, outputs: Tensor, mass: Tensor) -> Tensor:
        """`outputs` mixed with mean values by the estimated mass [G, K, C] of what is left out."""
        left = (1 - masks) * mass
        means = left @ self.mean_values
        return outputs * (1 - left.sum(-1))[..., None, None] + means[:, :, None]


def attend_row(q: Tensor, k: Tensor, v: Tensor, size: int, every: int) -> Row:
    """q [G, T, D], scaled, the last T of the positions of k, v [S, D]; float32. every: of which
    queries there are parts."""
    (_, count, dim), length = q.shape, k.shape[0]
    position = torch.arange(length - count, length)[:, None]
    scores = (q @ k.T).masked_fill_(torch.arange(length) > position, -torch.inf)
    lse = scores.logsumexp(-1, keepdim=True)
    weights, tail = scores.sub_(lse).exp_(), -length % size
    by_block = F.pad(weights, (0, tail)).unflatten(-1, (-1, size))
    values = F.pad(F.pad(v, (0, 1), value=1.0), (0, 0, 0, tail)).unflatten(0, (-1, size))
    some = by_block[:, ::every].permute(2, 0, 1, 3)  # [C, G, E, size]
    parts = (some.flatten(1, 2) @ values).unflatten(1, some.shape[1:3]).transpose(0, 1)
    sums, keys = values.sum(1), F.pad(k, (0, 0, 0, tail)).unflatten(0, (-1, size)).sum(1)
    number = sums[:, -1:]
    key_shares = (q @ (keys / number).T - lse).exp_().mul_(number.T).transpose(1, 2)
    return Row(
        dense=weights @ v,
        shares=by_block.sum(-1).transpose(1, 2),
        parts=parts.contiguous(),
        pseudo=key_shares[..., ::every, None] * (sums / number)[:, None],
        key_shares=key_shares,
        mean_values=(sums / number)[:, :dim],
    )


def measure_layer(q: Tensor, k: Tensor, v: Tensor, size: int) -> tuple[Tensor, LayerResult]:
    """Dense output [H, N, D] of q [H, N, D], scaled, and k, v [Hkv, N, D]; float32. The result."""
    results = [
        _measure_group(queries, keys, values, size)
        for queries, keys, values in zip(q.split(q.shape[0] // k.shape[0]), k, v, strict=True)
    ]
    layers = [layer for _, layer in results]
    curves = {name: joined([layer.curves[name] for layer in layers]) for name in METHODS}
    result = LayerResult(
        curves=curves,
        exact=torch.cat([layer.exact for layer in layers]),
        sampled=torch.cat([layer.sampled for layer in layers]),
    )
    return torch.cat([dense for dense, _ in results]), result


def _measure_group(q: Tensor, k: Tensor, v: Tensor, size: int) -> tuple[Tensor, LayerResult]:
    """One KV head: q [G, N, D], k, v [N, D]."""
    (group, length, _), rows = q.shape, -(-q.shape[1] // size)
    weights = [_block_means(x.norm(dim=-1), size) for x in (v, v - v.mean(0))]
    shape = (group, len(GAMMAS))
    blocks, kept = torch.zeros(2, len(SOURCES), *shape)
    wrong, norm = torch.zeros(len(METHODS), *shape), torch.zeros(group)
    exact, sampled = torch.zeros(2, group, rows, rows)
    dense = torch.empty_like(q)
    for row in range(rows):
        start, stop = row * size, min(length, (row + 1) * size)
        at = attend_row(q[:, start:stop], k[:stop], v[:stop], size, ERROR_STRIDE)
        mass = source_masses(at.shares, weights)
        masks = forced_gamma_masks(mass[..., None, :])[..., 0, :]  # [L, W, G, C]
        masks = masks.permute(1, 2, 0, 3).float()  # [W, G, L, C]
        blocks += masks.sum(-1)
        kept += (masks * mass[0, :, None]).sum(-1)
        exact[:, row, : row + 1] = mass[0]
        sampled[:, row, : row + 1] = mass[SOURCES.index("s16")]
        dense[:, start:stop] = at.dense
        out = at.dense[:, ::ERROR_STRIDE]
        norm += out.square().sum((1, 2))
        found = at.outputs(_joined(masks))
        chosen = _joined(masks[_PLACES])
        estimate = _spread(mass[_PLACES])
        scale = _spread(key_scales(mass[_PLACES], at.key_shares))
        of_chosen = torch.cat([found.unflatten(1, (-1, len(GAMMAS)))[:, p] for p in _PLACES], 1)
        # In the order of METHODS.
        every = (
            found,
            at.with_keys(chosen),
            at.with_keys(chosen, scale),
            at.with_means(chosen, of_chosen, estimate),
        )
        away = torch.cat([(x - out[:, None]).square().sum((2, 3)) for x in every], 1)
        wrong += away.unflatten(1, (len(METHODS), -1)).transpose(0, 1)
    error = (wrong / norm[:, None]).sqrt()
    sources = [SOURCES.index(name.split("+")[0]) for name in METHODS]
    causal = rows * (rows + 1) / 2
    curves = {
        name: Curve(density=blocks[source] / causal, recall=kept[source] / rows, error=error[i])
        for i, (name, source) in enumerate(zip(METHODS, sources, strict=True))
    }
    return dense, LayerResult(curves=curves, exact=exact, sampled=sampled)


def source_masses(shares: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """float32 [W, G, C] in the order of SOURCES, each row's sum 1, from the attention [G, C, T] of
    a block row and the blocks' weights [C or more]."""
    count, cols = shares.shape[2], shares.shape[1]
    exact = shares.mean(-1)
    s16, s32, s64 = (shares[..., (count - 1) % s :: s].mean(-1) for s in STRIDES)
    weighted = [[mass * w[:cols] for w in weights] for mass in (exact, s16)]
    masses = torch.stack([exact, *weighted[0], s16, *weighted[1], s32, s64])
    return masses / masses.sum(-1, keepdim=True)


def key_scales(mass: Tensor, key_shares: Tensor) -> Tensor:
    """[P, G, C] in [1, MAX_SCALE] from the mass [P, G, C] of CORRECTED and shares [G, C, T].

    1 is the least, as the mean of an exponential is no less than the exponential of the mean.
    """
    first = (key_shares.shape[-1] - 1) % STRIDES[0]
    keys = torch.stack([key_shares.mean(-1), key_shares[..., first :: STRIDES[0]].mean(-1)])
    return (mass / keys.clamp_min(torch.finfo(keys.dtype).tiny)).clamp(1, MAX_SCALE)


def joined(curves: Iterable[Curve]) -> Curve:
    """The heads of several parts, layers or prompts together; errors where all have them."""
    curves = list(curves)
    errors = [curve.error for curve in curves if curve.error is not None]
    return Curve(
        density=torch.cat([curve.density for curve in curves]),
        recall=torch.cat([curve.recall for curve in curves]),
        error=torch.cat(errors) if len(errors) == len(curves) else None,
    )


def forced_gamma_masks(mass: Tensor) -> Tensor:
    """bool [L, ..., R, C] of mass [..., R, C], its last R rows: with the forced blocks."""
    forced = forced_mask(mass.shape[-2], mass.shape[-1], LOCAL_BLOCKS)
    return torch.stack(gamma_masks(mass, GAMMAS)) | forced


def mass_curve(exact: Tensor, masks: Tensor) -> Curve:
    """What masks [L, H, R, C] compute and keep of the exact mass [H, R, C]."""
    rows = exact.shape[-1]
    density = masks.sum((2, 3)).T / (rows * (rows + 1) / 2)
    return Curve(density=density, recall=(masks * exact).sum((2, 3)).T / rows)


def chunk_mass(mass: Tensor, chunks: int, tail: int, kind: str) -> Tensor:
    """Mass [H, R, R] as the chunks of a prompt reuse it: rows of the first chunk are their own.

    A later row takes the mean over the `tail` last rows of the chunk before it: "absolute", by key
    block, and by distance where the key block is of its own chunk; "relative", by distance, and by
    key block beyond the distances known; "both", the sum of the two. Key block 0 is always taken by
    key block. Row sums are 1.
    """
    rows = mass.shape[1]
    result = mass.clone()
    for chunk in range(1, chunks):
        start, stop = rows * chunk // chunks, rows * (chunk + 1) // chunks
        absolute = mass[:, start - tail : start, :start].mean(1)
        others = F.pad(mass[..., 1:], (1, 0))
        # Distances that every one of these rows has.
        diagonals = [
            others[:, row, row - start + tail : row + 1].flip(-1)
            for row in range(start - tail, start)
        ]
        relative = torch.stack(diagonals).mean(0)
        for row in range(start, stop):
            result[:, row, : row + 1] = _reused(absolute, relative, row, kind)
    return result


def _reused(absolute: Tensor, relative: Tensor, row: int, kind: str) -> Tensor:
    """One row of `chunk_mass`, [H, row + 1]."""
    by_key = F.pad(absolute, (0, row + 1 - absolute.shape[1]))
    by_distance = F.pad(relative, (0, row + 1 - relative.shape[1])).flip(-1)
    by_distance[:, 0] = absolute[:, 0]
    key = torch.arange(row + 1)
    if kind == "absolute":
        mixed = torch.where(key < absolute.shape[1], by_key, by_distance)
    elif kind == "relative":
        mixed = torch.where(row - key < relative.shape[1], by_distance, by_key)
    else:
        mixed = by_key + by_distance
    return mixed / mixed.sum(-1, keepdim=True)


def chunk_estimate(rows: int, chunks: int, tail: int) -> float:
    """Share of the causal blocks whose mass the chunks estimate: the first one, and the tails."""
    bounds = [rows * chunk // chunks for chunk in range(chunks)]
    tails = [row for bound in bounds[2:] for row in range(bound - tail, bound)]
    return sum(row + 1 for row in (*range(bounds[1]), *tails)) / (rows * (rows + 1) / 2)


def _summed(masks: Tensor, parts: Tensor) -> Tensor:
    return (masks @ parts.flatten(2)).unflatten(-1, parts.shape[2:])


def _normalised(sums: Tensor) -> Tensor:
    return sums[..., :-1] / sums[..., -1:]


def _joined(masks: Tensor) -> Tensor:
    """[W, G, L, C] -> [G, W * L, C]."""
    return masks.transpose(0, 1).flatten(1, 2)


def _spread(mass: Tensor) -> Tensor:
    """[W, G, C] -> [G, W * L, C], the same at every gamma."""
    return _joined(mass[:, :, None].expand(-1, -1, len(GAMMAS), -1))


def _block_means(x: Tensor, size: int) -> Tensor:
    """x [N] -> [C]; the last block is the mean of what it has."""
    return torch.stack([part.mean() for part in x.split(size)])
