"""Timing calls: CUDA events between cache flushes on a GPU, a monotonic clock on CPU.

A GPU call is timed the way `triton.testing.do_bench` does it: before each run the L2 cache is
overwritten, all runs are queued without waiting for one another, and each has its own pair of
events, so that the host's launch latency counts only where a call is shorter than its launches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sp_profile.bench.stats import TimeStats, time_stats

# Twice the largest L2 of the supported GPUs and more: 60 MB on an H200, 126 MB on a B200.
_FLUSH_BYTES = 1 << 28
_MIN_RUNS = 5
_FIRST_RUNS = 3  # timed before it is known how many fit the budget
_MAX_RUNS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Times of one call, and the device memory of one run.

    peak_bytes: the largest allocation during a run, inputs and everything else alive included;
    extra_bytes: of it above what was allocated before the run. None on CPU.
    """

    times: TimeStats
    peak_bytes: int | None
    extra_bytes: int | None


class Clock:
    """Times calls on one device.

    repeat: runs of every call; None: as many as fit `budget_ms`, at least 5 and at most 200.
    """

    def __init__(
        self, device: torch.device, *, repeat: int | None = None, budget_ms: float = 400.0
    ) -> None:
        self._device = device
        self._repeat = repeat
        self._budget_ms = budget_ms

    def measure(self, call: Callable[[], Any]) -> Measured:
        """Warm up, take the memory of one run, then time the rest."""
        call()
        if self._device.type != "cuda":
            return Measured(times=self._on_cpu(call), peak_bytes=None, extra_bytes=None)
        peak, extra = self._memory(call)
        return Measured(times=self._on_gpu(call), peak_bytes=peak, extra_bytes=extra)

    def _memory(self, call: Callable[[], Any]) -> tuple[int, int]:
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        call()
        torch.cuda.synchronize(self._device)
        peak = torch.cuda.max_memory_allocated(self._device)
        return peak, peak - before

    def _on_gpu(self, call: Callable[[], Any]) -> TimeStats:
        flush = torch.empty(_FLUSH_BYTES // 4, dtype=torch.int32, device=self._device)
        first = self._queue(call, flush, self._repeat or _FIRST_RUNS)
        more = self._queue(call, flush, self._runs(first) - len(first))
        return time_stats(first + more)

    def _queue(self, call: Callable[[], Any], flush: torch.Tensor, runs: int) -> list[float]:
        starts = [torch.cuda.Event(enable_timing=True) for _ in range(runs)]
        ends = [torch.cuda.Event(enable_timing=True) for _ in range(runs)]
        for start, end in zip(starts, ends, strict=True):
            flush.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize(self._device)
        return [start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)]

    def _on_cpu(self, call: Callable[[], Any]) -> TimeStats:
        def once() -> float:
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)

        first = [once()]
        return time_stats(first + [once() for _ in range(self._runs(first) - len(first))])

    def _runs(self, first: list[float]) -> int:
        """How many runs to make in all, from the times of the first ones."""
        if self._repeat is not None:
            return self._repeat
        shortest = max(min(first), 1e-3)
        return int(min(max(self._budget_ms / shortest, _MIN_RUNS), _MAX_RUNS))
