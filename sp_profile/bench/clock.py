"""Timing calls: on a GPU the device alone or with its host, a monotonic clock on CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from sp_profile.bench.device_timer import CudaQueue, DeviceQueue, DeviceTimer, queued_times
from sp_profile.bench.stats import TimeStats, time_stats

_MIN_RUNS = 5
_FIRST_RUNS = 3  # timed before it is known how many fit the budget
_MAX_RUNS = 200

# How times were taken, as results say it.
DEVICE_ALONE = (
    "device time alone: CUDA events, L2 flushed and the device kept spinning until the host had "
    "queued the whole call"
)
DEVICE_OR_HOST = (
    "device time, held up by the host: as for device time alone, but the call kept the host longer "
    "than the device spun"
)
WITH_HOST = (
    "device and host: CUDA events, L2 flushed before every call, calls queued as fast as the host "
    "can; where launching takes longer than the work it is the host's time"
)
WALL_CLOCK = "wall clock on CPU"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Times of one call, and the device memory of one run.

    timer: how they were taken. host_ms: what the host took to queue one call; None on CPU and where
    times hold it. peak_bytes: the largest allocation during a run, inputs and everything else alive
    included; extra_bytes: of it above what was allocated before the run. None on CPU.
    """

    times: TimeStats
    timer: str
    host_ms: float | None
    peak_bytes: int | None
    extra_bytes: int | None


def timer_on(device: torch.device) -> str:
    """How `Clock.measure` takes times there, as a rule."""
    return DEVICE_ALONE if device.type == "cuda" else WALL_CLOCK


class Clock:
    """Times calls on one device.

    repeat: runs of every call; None: as many as fit `budget_ms`, at least 5 and at most 200.
    queue: of the device, None for its own.
    """

    def __init__(
        self,
        device: torch.device,
        *,
        repeat: int | None = None,
        budget_ms: float = 400.0,
        queue: DeviceQueue | None = None,
    ) -> None:
        self._device = device
        self._repeat = repeat
        self._budget_ms = budget_ms
        self._queue = queue

    def measure(self, call: Callable[[], Any]) -> Measured:
        """Warm up, take the memory of one run, then time the device alone in the rest."""
        call()
        if self._device.type != "cuda":
            return self._on_cpu(call)
        peak, extra = self._memory(call)
        timer = DeviceTimer(self._device_queue())
        runs = timer.time(call, self._repeat or _FIRST_RUNS, self._runs)
        return Measured(
            times=time_stats(runs.milliseconds),
            timer=DEVICE_ALONE if runs.alone else DEVICE_OR_HOST,
            host_ms=runs.host_ms,
            peak_bytes=peak,
            extra_bytes=extra,
        )

    def measure_with_host(self, call: Callable[[], Any]) -> Measured:
        """The same with the time that the host takes to launch, where that is longer."""
        call()
        if self._device.type != "cuda":
            return self._on_cpu(call)
        peak, extra = self._memory(call)
        queue = self._device_queue()
        first = queued_times(queue, call, self._repeat or _FIRST_RUNS)
        more = queued_times(queue, call, self._runs(min(first)) - len(first))
        return Measured(
            times=time_stats([*first, *more]),
            timer=WITH_HOST,
            host_ms=None,
            peak_bytes=peak,
            extra_bytes=extra,
        )

    def device_timer(self) -> DeviceTimer | None:
        """For calls with events of their own; None on CPU."""
        return DeviceTimer(self._device_queue()) if self._device.type == "cuda" else None

    def _device_queue(self) -> DeviceQueue:
        """Made anew for every call: what it holds to flush the cache is no part of any peak."""
        return self._queue or CudaQueue(self._device)

    def _memory(self, call: Callable[[], Any]) -> tuple[int, int]:
        torch.cuda.synchronize(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        before = torch.cuda.memory_allocated(self._device)
        call()
        torch.cuda.synchronize(self._device)
        peak = torch.cuda.max_memory_allocated(self._device)
        return peak, peak - before

    def _on_cpu(self, call: Callable[[], Any]) -> Measured:
        def once() -> float:
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)

        first = once()
        return Measured(
            times=time_stats([first] + [once() for _ in range(self._runs(first) - 1)]),
            timer=WALL_CLOCK,
            host_ms=None,
            peak_bytes=None,
            extra_bytes=None,
        )

    def _runs(self, shortest_ms: float) -> int:
        """How many runs to make in all, from the shortest of the first ones."""
        if self._repeat is not None:
            return self._repeat
        wanted = self._budget_ms / max(shortest_ms, 1e-3)
        return int(min(max(wanted, _MIN_RUNS), _MAX_RUNS))
