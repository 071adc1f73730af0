"""What a call takes on the device alone, however long the host takes to launch it.

Events around a call hold the gaps in which the device waits for the host: a kernel of 0.2 ms that
takes 0.3 ms to launch is measured as 0.3 ms. Here every run queues, in this order: an overwritten
L2 cache, a spin on the device, an event, the call, an event. While the device spins the host queues
the rest; a run is on time if the device had not reached its first event when the host had queued
its last, which is asked of the event itself. Spins are made longer until runs are on time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

# Twice the largest L2 of the supported GPUs and more: 60 MB on an H200, 126 MB on a B200.
_FLUSH_BYTES = 1 << 28
_PROBE_CYCLES = 2_000_000  # about a millisecond
_MARGIN = 2.0  # a first spin over the host's time for the call
_SHORTEST_MS, _LONGEST_MS = 0.05, 50.0


class Event(Protocol):
    """What `torch.cuda.Event(enable_timing=True)` offers."""

    def record(self) -> None: ...

    def query(self) -> bool:
        """Whether the device has passed it."""
        ...

    def elapsed_time(self, end: Any, /) -> float:
        """Milliseconds until `end`."""
        ...


class DeviceQueue(Protocol):
    """A device that works through what the host queues, and the host's clock."""

    def event(self) -> Event: ...

    def flush(self) -> None:
        """Queue an overwriting of the L2 cache."""
        ...

    def spin(self, milliseconds: float) -> None:
        """Queue about so long of doing nothing."""
        ...

    def synchronize(self) -> None: ...

    def host_ms(self) -> float:
        """A monotonic clock."""
        ...


class CudaQueue:
    """The current stream of a CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffer = torch.empty(_FLUSH_BYTES // 4, dtype=torch.int32, device=device)
        self._cycles_per_ms = max(self._probe() for _ in range(3))  # an idle device clocks low

    def event(self) -> Event:
        return torch.cuda.Event(enable_timing=True)

    def flush(self) -> None:
        self._buffer.zero_()

    def spin(self, milliseconds: float) -> None:
        torch.cuda._sleep(int(milliseconds * self._cycles_per_ms))

    def synchronize(self) -> None:
        torch.cuda.synchronize(self._device)

    def host_ms(self) -> float:
        return 1e3 * time.perf_counter()

    def _probe(self) -> float:
        start, end = self.event(), self.event()
        start.record()
        torch.cuda._sleep(_PROBE_CYCLES)
        end.record()
        self.synchronize()
        return _PROBE_CYCLES / start.elapsed_time(end)


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRuns:
    """Repeated runs of one call.

    milliseconds: of the device. host_ms: what the host took to queue one call. spin_ms: the spin
    before every run. alone: the times are the device's alone; otherwise the call waits for the
    device itself, or takes the host longer than the longest spin, and times hold the host's gaps.
    """

    milliseconds: tuple[float, ...]
    host_ms: float
    spin_ms: float
    alone: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class _Run:
    milliseconds: float
    on_time: bool


class DeviceTimer:
    """Times calls on one queue."""

    def __init__(self, queue: DeviceQueue) -> None:
        self._queue = queue

    def time(
        self, call: Callable[[], Any], first: int, wanted: Callable[[float], int]
    ) -> DeviceRuns:
        """Runs of a call that has run before.

        first: runs until it is known how many to make; wanted: runs in all, from the milliseconds
        that the shortest run takes with its spin. Late runs are left out unless most are late.
        """
        host_ms = max(self.launch_ms(call) for _ in range(2))
        spin_ms = _spin_for(host_ms)
        runs = self._runs(call, first, spin_ms)
        while not all(run.on_time for run in runs) and spin_ms < _LONGEST_MS:
            spin_ms = min(2 * spin_ms, _LONGEST_MS)
            runs = self._runs(call, first, spin_ms)
        shortest = min(run.milliseconds for run in runs)
        runs += self._runs(call, wanted(shortest + spin_ms) - first, spin_ms)
        kept = [run for run in runs if run.on_time]
        alone = 2 * len(kept) > len(runs)
        return DeviceRuns(
            milliseconds=tuple(run.milliseconds for run in (kept if alone else runs)),
            host_ms=host_ms,
            spin_ms=spin_ms,
            alone=alone,
        )

    def ahead(self, call: Callable[[], Any], launch_ms: float) -> bool:
        """Run a call once, the device spinning while the host queues it, and wait for it.

        False where the spin was too short: events inside the call then hold the host's gaps.
        """
        return self._runs(call, 1, _spin_for(launch_ms))[0].on_time

    def launch_ms(self, call: Callable[[], Any]) -> float:
        """What the host takes to queue a call that has run before; waits for the device first."""
        start, end = self._queue.event(), self._queue.event()
        self._queue.synchronize()
        began = self._queue.host_ms()
        start.record()
        call()
        end.record()
        return self._queue.host_ms() - began

    def _runs(self, call: Callable[[], Any], count: int, spin_ms: float) -> list[_Run]:
        """Queued without waiting for one another."""
        queued: list[tuple[Event, Event, bool]] = []
        for _ in range(count):
            start, end = self._queue.event(), self._queue.event()
            self._queue.flush()
            self._queue.spin(spin_ms)
            start.record()
            call()
            end.record()
            queued.append((start, end, not start.query()))
        self._queue.synchronize()
        return [_Run(milliseconds=a.elapsed_time(b), on_time=on) for a, b, on in queued]


def _spin_for(launch_ms: float) -> float:
    return min(max(_MARGIN * launch_ms, _SHORTEST_MS), _LONGEST_MS)


def queued_times(queue: DeviceQueue, call: Callable[[], Any], runs: int) -> Sequence[float]:
    """Milliseconds between events around calls that are queued as fast as the host can.

    What a user sees: where launching takes longer than the work, it is the host's time, less the
    tenth of a millisecond in which the device flushes meanwhile.
    """
    pairs = [(queue.event(), queue.event()) for _ in range(runs)]
    for start, end in pairs:
        queue.flush()
        start.record()
        call()
        end.record()
    queue.synchronize()
    return [start.elapsed_time(end) for start, end in pairs]
