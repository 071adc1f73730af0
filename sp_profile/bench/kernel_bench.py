"""The block-sparse attention kernel beside other kernels: correct first, then timed.

A kernel whose output fails `check` is reported with its error and no time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sp_profile.bench.check import Check, check_output, poison
from sp_profile.bench.clock import Clock, Measured, timer_on
from sp_profile.bench.environment import Environment, environment
from sp_profile.bench.inputs import LayerShape, random_inputs
from sp_profile.bench.masks import MaskCase
from sp_profile.bench.peers import Peer, Work
from sp_profile.bench.roofline import Ceilings, Roofline, roofline
from sp_profile.bench.stats import TimeStats, tflops
from sp_runtime.block_index import BlockGrid
from sp_runtime.kernels.base import Kernels

SCHEMA = "sp.bench.kernel"


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A kernel of ours under its reported name."""

    name: str
    kernels: Kernels


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelRow:
    """One kernel on one mask.

    kind: "own" or "peer". detail: which of its kernels ran, for one of ours.
    status: "ok", "wrong" (its output fails the check), "failed" (it raised) or "unavailable";
    problem says why, and every figure is None then. blocks: computed over all heads. density:
    blocks / causal blocks; requested_density: as asked for. times: of the device alone, unless
    environment.timer says that the host held it up. host_ms: what the host takes to queue one call,
    None on CPU. tflops: on blocks, at the median time. ratio: the first own kernel's rate over this
    one's.
    """

    kernel: str
    detail: str
    kind: str
    status: str
    problem: str
    mask: str
    shape: LayerShape
    requested_density: float
    density: float
    blocks: int
    check: Check | None
    times: TimeStats | None
    host_ms: float | None
    tflops: float | None
    ratio: float | None
    peak_bytes: int | None
    extra_bytes: int | None
    roofline: Roofline | None
    environment: Environment


@dataclass(frozen=True, kw_only=True, slots=True)
class KernelBench:
    """What to measure and how.

    own: kernels of ours, the first is the one that ratios speak of. cases: makes the masks of one
    grid. ceilings: for the roofline of every row, or None.
    """

    own: Sequence[Candidate]
    peers: Sequence[Peer]
    device: torch.device
    clock: Clock
    seed: int
    ceilings: Ceilings | None

    def rows(
        self, shape: LayerShape, cases: Callable[[BlockGrid], Iterator[MaskCase]]
    ) -> Iterator[list[KernelRow]]:
        """The rows of one mask after the other, own kernels first; dense peers only where every
        block is on."""
        inputs = random_inputs(shape, self.device, self.seed)
        facts = environment(self.device, timer_on(self.device))
        for case in cases(shape.grid):
            index = self.own[0].kernels.build_index(case.mask, shape.grid, case.dense)
            is_dense = case.blocks() == shape.heads * shape.grid.num_causal_blocks
            work = Work(inputs=inputs, index=index, is_dense=is_dense)
            rows = [self._own(each, work, case, shape, facts) for each in self.own]
            if rows[0].status == "ok":  # a ratio to a wrong kernel would say nothing
                rows += [
                    self._peer(peer, work, case, shape, facts)
                    for peer in self.peers
                    if is_dense or not peer.dense
                ]
            yield _with_ratios(rows)

    def _own(
        self, own: Candidate, work: Work, case: MaskCase, shape: LayerShape, facts: Environment
    ) -> KernelRow:
        inputs, index = work.inputs, work.index

        def call() -> Tensor:
            return own.kernels.attention(inputs.q, inputs.k, inputs.v, index, scale=inputs.scale)[0]

        check, measured = self._measure(call, work, case)
        return self._row(
            own.name,
            "own",
            case,
            shape,
            facts,
            detail=own.kernels.describe(shape.head_dim, shape.block_size, inputs.q.dtype),
            check=check,
            measured=measured,
        )

    def _peer(
        self, peer: Peer, work: Work, case: MaskCase, shape: LayerShape, facts: Environment
    ) -> KernelRow:
        obstacle = peer.obstacle(self.device)
        if obstacle is not None:
            return self._row(
                peer.name, "peer", case, shape, facts, status="unavailable", problem=obstacle
            )
        try:
            check, measured = self._measure(peer.prepare(work), work, case)
        except Exception as error:  # other people's kernels raise anything; it is reported
            problem = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            return self._row(
                peer.name, "peer", case, shape, facts, status="failed", problem=problem
            )
        return self._row(peer.name, "peer", case, shape, facts, check=check, measured=measured)

    def _measure(
        self, call: Callable[[], Tensor], work: Work, case: MaskCase
    ) -> tuple[Check, Measured | None]:
        with torch.inference_mode():
            poison(work.inputs.q)
            check = check_output(call(), work.inputs, case.mask, seed=self.seed)
            return check, self.clock.measure(call) if check.ok else None

    def _row(
        self,
        name: str,
        kind: str,
        case: MaskCase,
        shape: LayerShape,
        facts: Environment,
        *,
        detail: str = "",
        status: str = "ok",
        problem: str = "",
        check: Check | None = None,
        measured: Measured | None = None,
    ) -> KernelRow:
        blocks = case.blocks()
        if check is not None and not check.ok:
            status = "wrong"
            problem = f"relative error {check.error:.3g} exceeds {check.bound:g}"
            problem = problem if check.finite else "the output holds NaN or infinity"
        rate = stands = None
        if measured is not None:
            median = measured.times.median_ms
            rate = tflops(blocks * shape.operations_per_block, median)
            if self.ceilings is not None:
                stands = roofline(shape, blocks, median, self.ceilings)
        return KernelRow(
            kernel=name,
            detail=detail,
            kind=kind,
            status=status,
            problem=problem,
            mask=case.name,
            shape=shape,
            requested_density=case.wanted,
            density=blocks / shape.heads / shape.grid.num_causal_blocks,
            blocks=blocks,
            check=check if check is None or check.error < float("inf") else None,
            times=None if measured is None else measured.times,
            host_ms=None if measured is None else measured.host_ms,
            tflops=rate,
            ratio=None,
            peak_bytes=None if measured is None else measured.peak_bytes,
            extra_bytes=None if measured is None else measured.extra_bytes,
            roofline=stands,
            environment=facts if measured is None else replace(facts, timer=measured.timer),
        )


def _with_ratios(rows: list[KernelRow]) -> list[KernelRow]:
    own = rows[0].tflops
    return [
        replace(row, ratio=None if own is None or row.tflops is None else own / row.tflops)
        for row in rows
    ]
