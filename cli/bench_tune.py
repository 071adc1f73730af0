"""The --tune switch of `sp-run bench kernel`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .bench_options import BenchSettings
from .output import Output

if TYPE_CHECKING:
    import torch

    from sp_profile.bench.clock import Clock
    from sp_profile.bench.inputs import LayerShape
    from sp_profile.bench.tune import TuneRow

_SHOWN = 5
_WORTH_PINNING = 1.02  # less is within the spread of two runs


def tune_kernel(
    output: Output,
    settings: BenchSettings,
    shapes: Sequence[LayerShape],
    densities: Sequence[float],
    clock: Clock,
    device: torch.device,
) -> None:
    """Time the candidates of every operation and print what to pin in tuning.py."""
    from sp_profile.bench.clock import timer_on
    from sp_profile.bench.environment import environment
    from sp_profile.bench.tune import SCHEMA, tune

    rows: list[TuneRow] = []
    for shape in shapes:
        for found in tune(shape, densities, device=device, clock=clock, seed=settings.seed):
            rows += found
            _print(output, found)
    facts = environment(device, timer_on(device))
    settings.finish(output, SCHEMA, rows, environment=facts)


def _print(output: Output, rows: Sequence[TuneRow]) -> None:
    """The fastest configurations of one operation, and the verdict."""
    first = rows[0]
    shape = first.shape
    output.line(
        f"{first.operation}: {shape.length} tokens, {shape.heads} x {shape.kv_heads} heads of "
        f"{shape.head_dim}, block {shape.block_size}, {shape.dtype}; ms at {', '.join(first.cases)}"
    )
    kept = next(row for row in rows if row.pinned)
    shown = list(rows[:_SHOWN])
    for row in shown if kept in shown else [*shown, kept]:
        times = row.problem or "  ".join(f"{ms:.3f}" for ms in row.median_ms or ())
        score = "  -  " if row.score is None else f"{row.score:.3f}"
        output.line(f"  {score}  {times}  {row.config}{'  (pinned)' if row.pinned else ''}")
    if first.score is None or first.score < _WORTH_PINNING:
        output.line("  keep what is pinned")
    else:
        output.line(f"  pin: {first.config}")
    output.line()
