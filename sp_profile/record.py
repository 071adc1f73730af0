"""Recording attention: exact output and exact block masses of every head, one layer at a time.

Legend: B = 1, H query heads of a layer, R = C block rows and columns, T causal blocks, LH heads of
all recorded layers, K candidates. Nothing that grows with the square of the tokens is ever made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sp_profile.bits import pack_bits, unpack_bits
from sp_profile.candidates import (
    Candidate,
    LentMask,
    MaskSettings,
    SampledMasses,
    candidate_masks,
)
from sp_profile.shard import PromptShard
from sp_profile.thumbnail import mass_thumbnail
from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.errors import SpError, UnsupportedError
from sp_runtime.integrations.transformers import ForwardCall
from sp_runtime.kernels.base import Kernels
from sp_runtime.patterns.base import LayerInputs
from sp_runtime.patterns.masks import (
    block_sum,
    forced_blocks,
    gamma_mask,
    spread_gamma_masks,
    sqrt_jsd,
)
from sp_runtime.profile import PromptRecord

_SPLIT_PARTS = 8  # groups of heads where a whole layer does not fit, one KV head each at the least
_SLICE_ELEMENTS = 1 << 24  # floats of unpacked masks or divergences at a time: 64 MiB


class NonFiniteAttentionError(SpError):
    """Attention that holds NaN or infinity: the prompt cannot be measured."""

    code = "NON_FINITE"


@dataclass(frozen=True, kw_only=True, slots=True)
class RecordSettings:
    """What is recorded. layers: the full-attention layers, ascending; num_heads: of each layer.

    lending: sampled masks whose borrowers are measured, beside those at gamma and sample_stride.
    oracle_gammas: at which each head's own exact mask is.
    """

    block_size: int
    gamma: float
    sample_stride: int
    candidates: tuple[Candidate, ...]
    mask_settings: MaskSettings
    layers: tuple[int, ...]
    num_heads: int
    lending: tuple[LentMask, ...] = ()
    oracle_gammas: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Part:
    """What was measured of some heads of a layer, on the device; masks packed, [H', ceil(T / 8)].

    forced, sampled: gamma-masks with the forced blocks, from the exact and the sampled mass.
    flat_mass: float32 [H', T], divided by R, so that a sum is a mean over rows. picture: of it.
    lent: the further masks that are lent, M of them; lent_density: float32 [M, H'].
    oracle_density, oracle_recall: float32 [H', G].
    """

    flat_mass: Tensor
    masks: Tensor
    forced: Tensor
    sampled: Tensor
    density: Tensor
    sampled_density: Tensor
    a_hat: Tensor
    candidate_cost: Tensor
    candidate_recall: Tensor
    picture: Tensor
    lent: tuple[Tensor, ...]
    lent_density: Tensor
    oracle_density: Tensor
    oracle_recall: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class _LayerRecord:
    """One layer's results: those of its parts, and what needs the masks of all of them.

    recall_exact, recall_sampled and each of lent_recall: float32 [H, heads up to and including
    this layer].
    """

    masks: Tensor
    forced: Tensor
    sampled: Tensor
    density: Tensor
    sampled_density: Tensor
    recall_exact: Tensor
    recall_sampled: Tensor
    a_hat: Tensor
    candidate_cost: Tensor
    candidate_recall: Tensor
    picture: Tensor
    lent: tuple[Tensor, ...]
    lent_density: Tensor
    lent_recall: tuple[Tensor, ...]
    oracle_density: Tensor
    oracle_recall: Tensor


class RecordingHandler:
    """An `AttentionHandler` that computes exact attention and measures every head.

    Run one forward of one whole prompt, then take `shard`; the next forward starts afresh. Heads
    are measured together, or after `split` in groups of KV heads with the same results up to the
    rounding of float32 sums.
    """

    def __init__(self, settings: RecordSettings, kernels: Kernels) -> None:
        self._settings = settings
        self._kernels = kernels
        self._grid: BlockGrid | None = None
        self._layers: dict[int, _LayerRecord] = {}
        self._parts = 1

    def split(self) -> None:
        """Take less memory from now on: measure the heads of a layer in more groups, one at a
        time. What the last forward recorded is dropped."""
        self._layers = {}
        self._parts = _SPLIT_PARTS

    def begin(self, call: ForwardCall) -> None:
        """Start over; refuses chunks, since masks of a whole prompt are wanted."""
        if call.q_offset != 0:
            raise UnsupportedError("calibration takes each prompt in one piece")
        self._layers = {}
        self._grid = BlockGrid(
            q_len=call.q_len, kv_len=call.kv_len, block_size=self._settings.block_size
        )

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        """Exact attention [1, H, N, D]; raises NonFiniteAttentionError naming layer and head."""
        assert self._grid is not None, "begin comes first"
        if q.shape[0] != 1:
            raise UnsupportedError(f"calibration takes one prompt at a time, not {q.shape[0]}")
        index = BlockIndex.full(1, q.shape[1], self._grid, q.device)
        output, lse = self._kernels.attention(q, k, v, index, scale=scale)
        kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
        step = -(-kv_heads // self._parts)
        parts = []
        for start in range(0, kv_heads, step):
            kv = slice(start, start + step)
            of_group = slice(start * group, (start + step) * group)
            inputs = LayerInputs(
                layer=layer,
                q=q[:, of_group],
                k=k[:, kv],
                grid=self._grid,
                scale=scale,
                kernels=self._kernels,
            )
            parts.append(self._measure(inputs, lse[:, of_group], first_head=of_group.start))
        self._layers[layer] = self._joined(parts)
        return output

    def shard(self, prompt: PromptRecord) -> PromptShard:
        """The record of the forward that just ran, on the host."""
        settings, grid = self._settings, self._grid
        assert grid is not None
        assert tuple(self._layers) == settings.layers, "every layer ran once, in order"
        records = tuple(self._layers.values())
        heads = [(layer, head) for layer in settings.layers for head in range(settings.num_heads)]
        a_hat = torch.cat([record.a_hat for record in records])
        uniform = torch.full_like(a_hat, 1 / grid.num_cols)
        oracles = bool(settings.oracle_gammas)
        return PromptShard(
            prompt=prompt,
            grid=grid,
            heads=np.array(heads, dtype=np.int32),
            masks=_host([record.masks for record in records]),
            density=_host([record.density for record in records]),
            recall_exact=_lower_matrix([record.recall_exact for record in records]),
            recall_sampled=_lower_matrix([record.recall_sampled for record in records]),
            sampled_density=_host([record.sampled_density for record in records]),
            uniform_jsd=_host([sqrt_jsd(a_hat, uniform)]),
            a_hat_jsd=_host([_pairwise_jsd(a_hat)]).astype(np.float16),
            candidate_cost=_host([record.candidate_cost for record in records]),
            candidate_recall=_host([record.candidate_recall for record in records]),
            mass=_host([record.picture for record in records]),
            lent_recall=self._lent_recall(records),
            lent_density=_host([record.lent_density for record in records], dim=1)
            if settings.lending
            else None,
            oracle_recall=_host([record.oracle_recall for record in records]) if oracles else None,
            oracle_density=_host([record.oracle_density for record in records])
            if oracles
            else None,
        )

    def _lent_recall(self, records: Sequence[_LayerRecord]) -> NDArray[np.float16] | None:
        """float16 [M, LH, LH]; None where nothing further is lent."""
        if not self._settings.lending:
            return None
        matrices = [
            _lower_matrix([record.lent_recall[number] for record in records])
            for number in range(len(self._settings.lending))
        ]
        return np.stack(matrices).astype(np.float16)

    def _measure(self, inputs: LayerInputs, lse: Tensor, *, first_head: int) -> _Part:
        """What the heads of `inputs` need; lse: float32 [1, H', N] of exact attention."""
        settings, grid = self._settings, inputs.grid
        heads = torch.arange(inputs.q.shape[1], device=inputs.q.device)[None]
        mass = inputs.kernels.block_mass(inputs.q, inputs.k, lse, heads, grid, scale=inputs.scale)[
            0
        ].float()
        _require_finite(mass, inputs.layer, first_head)
        triangle = _Triangle(grid, mass.device)
        local, slack = settings.mask_settings.local_blocks, settings.mask_settings.row_slack

        def spread(block_mass: Tensor, gammas: tuple[float, ...]) -> tuple[Tensor, ...]:
            masks = spread_gamma_masks(block_mass, gammas, row_slack=slack)
            return tuple(triangle.flat(mask) | forced_bits for mask in masks)

        forced_bits = triangle.flat(forced_blocks(grid, mass.device, local_blocks=local))
        flat_mass = triangle.flat(mass) / grid.num_rows
        own = triangle.flat(gamma_mask(mass, settings.gamma))
        masses = SampledMasses(inputs)
        sampled_mass = masses.at(settings.sample_stride)[0].float()
        _require_finite(sampled_mass, inputs.layer, first_head)
        exact = own | forced_bits
        (sampled,) = spread(sampled_mass, (settings.gamma,))
        estimate = inputs.kernels.last_block(inputs.q, inputs.k, grid, scale=inputs.scale)
        a_hat = block_sum(estimate.vertical, grid)[0].float()
        _require_finite(a_hat[:, None], inputs.layer, first_head)
        costs, recalls = [], []
        for mask, cost in candidate_masks(
            inputs, settings.candidates, estimate, masses, settings.mask_settings
        ):
            bits = triangle.flat(mask[0])
            costs.append((bits.sum(-1) + cost) / triangle.size)
            recalls.append(_kept(flat_mass, bits))
        lent, lent_density = [], [flat_mass.new_zeros(0, len(flat_mass))]
        for stride, same in groupby(settings.lending, lambda one: one.stride):
            gammas = tuple(one.gamma for one in same)
            for bits in spread(masses.at(stride)[0].float(), gammas):
                lent.append(pack_bits(bits))
                lent_density.append(bits.float().mean(-1)[None])
        empty = flat_mass.new_zeros(len(flat_mass), 0)
        oracle_density, oracle_recall = [empty], [empty]
        for bits in spread(mass, settings.oracle_gammas):
            oracle_density.append(bits.float().mean(-1, keepdim=True))
            oracle_recall.append(_kept(flat_mass, bits)[:, None])
        return _Part(
            flat_mass=flat_mass,
            masks=pack_bits(own),
            forced=pack_bits(exact),
            sampled=pack_bits(sampled),
            density=exact.float().mean(-1),
            sampled_density=sampled.float().mean(-1),
            a_hat=a_hat,
            candidate_cost=torch.stack(costs, -1) if costs else empty,
            candidate_recall=torch.stack(recalls, -1) if recalls else empty,
            picture=mass_thumbnail(flat_mass, grid.num_rows),
            lent=tuple(lent),
            lent_density=torch.cat(lent_density),
            oracle_density=torch.cat(oracle_density, -1),
            oracle_recall=torch.cat(oracle_recall, -1),
        )

    def _joined(self, parts: list[_Part]) -> _LayerRecord:
        earlier = tuple(self._layers.values())
        forced = torch.cat([part.forced for part in parts])
        sampled = torch.cat([part.sampled for part in parts])
        lenders_exact = [*(record.forced for record in earlier), forced]
        lenders_sampled = [*(record.sampled for record in earlier), sampled]
        further = range(len(self._settings.lending))
        lent = tuple(torch.cat([part.lent[n] for part in parts]) for n in further)
        lenders = [[*(record.lent[n] for record in earlier), lent[n]] for n in further]
        return _LayerRecord(
            masks=torch.cat([part.masks for part in parts]),
            forced=forced,
            sampled=sampled,
            density=torch.cat([part.density for part in parts]),
            sampled_density=torch.cat([part.sampled_density for part in parts]),
            recall_exact=torch.cat([_recall(part.flat_mass, lenders_exact) for part in parts]),
            recall_sampled=torch.cat([_recall(part.flat_mass, lenders_sampled) for part in parts]),
            a_hat=torch.cat([part.a_hat for part in parts]),
            candidate_cost=torch.cat([part.candidate_cost for part in parts]),
            candidate_recall=torch.cat([part.candidate_recall for part in parts]),
            picture=torch.cat([part.picture for part in parts]),
            lent=lent,
            lent_density=torch.cat([part.lent_density for part in parts], 1),
            lent_recall=tuple(
                torch.cat([_recall(part.flat_mass, lenders[n]) for part in parts]) for n in further
            ),
            oracle_density=torch.cat([part.oracle_density for part in parts]),
            oracle_recall=torch.cat([part.oracle_recall for part in parts]),
        )


class _Triangle:
    """The causal blocks of a grid in row-major order: [..., R, C] -> [..., T]."""

    def __init__(self, grid: BlockGrid, device: torch.device) -> None:
        self._rows, self._cols = torch.tril_indices(grid.num_rows, grid.num_cols, device=device)
        self.size = grid.num_causal_blocks

    def flat(self, blocks: Tensor) -> Tensor:
        return blocks[..., self._rows, self._cols]


def _recall(flat_mass: Tensor, lenders: list[Tensor]) -> Tensor:
    """float32 [H, lenders]: mass inside each lender's packed mask, unpacked slice by slice."""
    size = flat_mass.shape[-1]
    step = max(1, _SLICE_ELEMENTS // size)
    parts = [
        _kept_by_all(flat_mass, unpack_bits(part, size))
        for packed in lenders
        for part in packed.split(step)
    ]
    return torch.cat(parts, -1)


def _kept_by_all(flat_mass: Tensor, bits: Tensor) -> Tensor:
    return (flat_mass @ bits.to(flat_mass.dtype).T).clamp(0, 1)


def _kept(flat_mass: Tensor, bits: Tensor) -> Tensor:
    return (flat_mass * bits).sum(-1).clamp(0, 1)


def _pairwise_jsd(a_hat: Tensor) -> Tensor:
    """float32 [LH, LH] from a_hat [LH, C], a few rows at a time; symmetric by construction."""
    step = max(1, _SLICE_ELEMENTS // a_hat.numel())
    return torch.cat([sqrt_jsd(part[:, None], a_hat[None]) for part in a_hat.split(step)])


def _lower_matrix(rows: list[Tensor]) -> NDArray[np.float32]:
    """[LH, LH] from each layer's [H, heads so far]; -1 in what lies to the right."""
    size = rows[-1].shape[1]
    matrix = np.full((size, size), -1, dtype=np.float32)
    start = 0
    for part in rows:
        matrix[start : start + part.shape[0], : part.shape[1]] = part.cpu().numpy()
        start += part.shape[0]
    return matrix


def _host(parts: list[Tensor], dim: int = 0) -> NDArray:
    return torch.cat(parts, dim).cpu().numpy()


def _require_finite(mass: Tensor, layer: int, first_head: int) -> None:
    """mass [H', R, C] of the heads from first_head on; synchronises with the device once a call."""
    bad = ~torch.isfinite(mass).flatten(1).all(-1)
    if bool(bad.any()):
        head = first_head + int(bad.nonzero()[0, 0])
        raise NonFiniteAttentionError(
            f"attention of layer {layer}, head {head} holds NaN or infinity",
            hint="try bfloat16 or float32 in place of float16",
        )
