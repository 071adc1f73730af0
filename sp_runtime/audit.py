"""Audit of a sparse prefill: a few heads computed densely as well, and what their masks would keep.

Attention that was left out is not seen in the output of a sparse prefill. An audit computes about
one head in `1 / share` densely beside it, takes its exact block mass, and keeps the part of it that
lies inside the head's mask: its recall. The prefill itself, its outputs and its counts of blocks
are what they are without an audit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from sp_runtime.block_index import BlockIndex, normalise_mask
from sp_runtime.errors import UsageError
from sp_runtime.patterns.base import Branch, Decision, LayerInputs
from sp_runtime.selection import take_heads

_FOREVER = 1 << 62  # heads


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadAudit:
    """One audited head of one sequence of a batch.

    forward: its place among those of the report. branch: the name of the `Branch` that its mask
    comes from, lower-case. recall: mean over block rows of the attention mass inside that mask,
    in [0, 1]; 1 for a head that was dense anyway.
    """

    forward: int
    sequence: int
    layer: int
    head: int
    branch: str
    recall: float


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditRecord:
    """The audited heads of one layer, on the device: branch uint8 [B, S], recall float32 [B, S]."""

    layer: int
    heads: tuple[int, ...]
    branch: Tensor
    recall: Tensor

    def read(self, forward: int) -> Iterator[HeadAudit]:
        """As Python numbers; synchronises with the device."""
        recalls = self.recall.clamp(0, 1).tolist()
        for sequence, branches in enumerate(self.branch.tolist()):
            for slot, head in enumerate(self.heads):
                yield HeadAudit(
                    forward=forward,
                    sequence=sequence,
                    layer=self.layer,
                    head=head,
                    branch=Branch(branches[slot]).name.lower(),
                    recall=recalls[sequence][slot],
                )


class Audit:
    """Which heads are audited: each with probability `share`, the same ones in every run.

    The choice follows from the seed, the number of forwards so far, and the place of a head among
    those of its forward. It is made on the host and waits for nothing.

    share: in [0, 1]; 1 audits every head, 0 none.
    """

    def __init__(self, share: float, *, seed: int = 0) -> None:
        if not 0 <= share <= 1:
            raise UsageError(f"audit {share} is not in [0, 1]", hint="try 0.001, one head in 1000")
        self._share = share
        self._seed = seed
        self._forwards = 0
        self._random = Random(seed)
        self._ahead = 0

    def begin(self) -> None:
        """Start a forward."""
        self._random = Random(f"{self._seed} {self._forwards}")
        self._forwards += 1
        self._ahead = self._gap()

    def take(self, num_heads: int) -> tuple[int, ...]:
        """The audited heads of the next layer, ascending."""
        heads = []
        while self._ahead < num_heads:
            heads.append(self._ahead)
            self._ahead += 1 + self._gap()
        self._ahead -= num_heads
        return tuple(heads)

    def _gap(self) -> int:
        """Heads to pass over; geometric, so that each is taken with probability `share`."""
        if self._share in (0, 1):
            return 0 if self._share else _FOREVER
        passed = math.log(1 - self._random.random()) / math.log1p(-self._share)
        return int(min(passed, _FOREVER))


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditedHeads:
    """The audited heads of a layer, for all B sequences of a batch; `heads`: on the device, [S]."""

    numbers: tuple[int, ...]
    heads: Tensor
    batch: int

    @classmethod
    def on(cls, q: Tensor, numbers: tuple[int, ...]) -> AuditedHeads:
        """For queries [B, H, N, D]."""
        heads = torch.tensor(numbers).to(q.device, non_blocking=True)
        return cls(numbers=numbers, heads=heads, batch=q.shape[0])

    def record(self, inputs: LayerInputs, decision: Decision, *, last_rows: int) -> AuditRecord:
        """What their masks keep of their exact block mass.

        last_rows: so many block rows at the end are dense in every head.
        """
        heads, grid = self.heads.expand(self.batch, -1), inputs.grid
        slots = heads if decision.slots is None else decision.slots.gather(1, heads)
        kept = normalise_mask(take_heads(decision.mask, slots), grid)
        if last_rows:
            kept[..., -last_rows:, :] = True
        # Every row of the mass sums to 1.
        recall = (self._exact_mass(inputs) * kept).sum((-2, -1)) / grid.num_rows
        return AuditRecord(
            layer=inputs.layer,
            heads=self.numbers,
            branch=decision.branch.gather(1, heads),
            recall=torch.where(decision.dense.gather(1, heads), 1.0, recall),
        )

    def dense_record(self, layer: int) -> AuditRecord:
        """In a layer that is dense as a whole."""
        shape, device = (self.batch, len(self.numbers)), self.heads.device
        return AuditRecord(
            layer=layer,
            heads=self.numbers,
            branch=torch.full(shape, Branch.DENSE, dtype=torch.uint8, device=device),
            recall=torch.ones(shape, dtype=torch.float32, device=device),
        )

    def _exact_mass(self, inputs: LayerInputs) -> Tensor:
        """float32 [B, S, R, C], from dense attention of these heads alone."""
        grid, kernels, scale = inputs.grid, inputs.kernels, inputs.scale
        q = inputs.q.index_select(1, self.heads)
        k = inputs.k.index_select(1, self.heads // (inputs.q.shape[1] // inputs.k.shape[1]))
        every = BlockIndex.full(self.batch, len(self.numbers), grid, q.device)
        # The row sums alone are wanted, so the keys stand in for the values.
        _, lse = kernels.attention(q, k, k, every, scale=scale)
        heads = inputs.constants.every_head(len(self.numbers), q.device).expand(self.batch, -1)
        return kernels.block_mass(q, k, lse, heads, grid, scale=scale)


def told_audits(audits: Sequence[HeadAudit]) -> str:
    """A few words on audits: how many heads, their mean recall, and the lowest one."""
    worst = min(audits, key=lambda audit: audit.recall)
    mean = sum(audit.recall for audit in audits) / len(audits)
    return (
        f"{len(audits)} heads, recall {mean:.3f}, lowest {worst.recall:.3f} "
        f"(layer {worst.layer}, head {worst.head}, {worst.branch})"
    )
