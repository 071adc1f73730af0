"""Times of the device alone, on a simulated host and device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp_profile.bench import clock as clock_module
from sp_profile.bench.clock import DEVICE_ALONE, DEVICE_OR_HOST, WITH_HOST, Clock
from sp_profile.bench.device_timer import DeviceTimer, queued_times

FLUSH = 0.09


class FakeEvent:
    def __init__(self, queue: FakeQueue) -> None:
        self.queue, self.at = queue, math.nan

    def record(self) -> None:
        self.queue.host += 0.002
        self.at = self.queue.device_takes(0)

    def query(self) -> bool:
        return self.at <= self.queue.host

    def elapsed_time(self, end: FakeEvent) -> float:
        return end.at - self.at


class FakeQueue:
    """A host that takes time to queue, and a device that works through what is queued."""

    def __init__(self, *, spin_error: float = 1.0) -> None:
        self.host = self.device = 0.0
        self.spins: list[float] = []
        self.spin_error = spin_error

    def device_takes(self, milliseconds: float) -> float:
        """When it is done: work starts once it is queued and what came before is done."""
        self.device = max(self.device, self.host) + milliseconds
        return self.device

    def event(self) -> FakeEvent:
        return FakeEvent(self)

    def flush(self) -> None:
        self.host += 0.005
        self.device_takes(FLUSH)

    def spin(self, milliseconds: float) -> None:
        self.spins.append(milliseconds)
        self.host += 0.005
        self.device_takes(milliseconds * self.spin_error)

    def synchronize(self) -> None:
        self.host = max(self.host, self.device)

    def host_ms(self) -> float:
        return self.host

    def call(self, host: float, device: float) -> Callable[[], None]:
        """A call of one launch."""

        def run() -> None:
            self.host += host
            self.device_takes(device)

        return run


def twenty(shortest: float) -> int:
    return 20


@given(host=st.floats(0.005, 5), device=st.floats(0.01, 20))
def test_the_host_is_in_no_figure(host: float, device: float) -> None:
    queue = FakeQueue()
    found = DeviceTimer(queue).time(queue.call(host, device), 3, twenty)
    assert found.alone
    assert found.milliseconds == pytest.approx([device] * 20)
    assert found.spin_ms >= found.host_ms >= host


def test_plain_events_hold_the_gaps_and_so_the_test_can_fail() -> None:
    queue = FakeQueue()
    times = queued_times(queue, queue.call(0.5, 0.2), 10)
    assert min(times) > 0.5 - FLUSH  # the host queues while the device flushes


@pytest.mark.parametrize("spin_error", [0.05, 0.3])
def test_a_spin_that_proves_short_is_lengthened(spin_error: float) -> None:
    """As where the device's clock was low when cycles were counted."""
    queue = FakeQueue(spin_error=spin_error)
    found = DeviceTimer(queue).time(queue.call(1.0, 0.2), 3, twenty)
    assert found.alone
    assert found.milliseconds == pytest.approx([0.2] * 20)
    assert queue.spins[-1] * spin_error > 1.0 > queue.spins[0] * spin_error


def test_a_call_that_waits_for_the_device_is_told_apart() -> None:
    queue = FakeQueue()

    def call() -> None:
        queue.call(0.1, 0.4)()
        queue.synchronize()

    found = DeviceTimer(queue).time(call, 3, twenty)
    assert not found.alone
    assert len(found.milliseconds) == 20
    assert max(queue.spins) <= 50  # it gives up


def test_single_late_runs_are_left_out() -> None:
    queue = FakeQueue()
    hiccups: Iterator[float] = iter([0.0] * 9 + [30.0] + [0.0] * 30)

    def call() -> None:
        queue.call(0.1 + next(hiccups), 0.2)()

    found = DeviceTimer(queue).time(call, 3, twenty)
    assert found.alone
    assert found.milliseconds == pytest.approx([0.2] * 19)


def test_ahead_says_whether_the_host_was() -> None:
    queue = FakeQueue()
    timer = DeviceTimer(queue)
    call = queue.call(1.0, 0.2)
    assert timer.launch_ms(call) == pytest.approx(1.004)
    assert timer.ahead(call, 1.004)
    assert not timer.ahead(call, 0.3)


@pytest.fixture
def gpu_clock(monkeypatch: pytest.MonkeyPatch) -> tuple[Clock, FakeQueue]:
    """A clock of a CUDA device that is not there."""
    queue = FakeQueue()
    monkeypatch.setattr(clock_module.Clock, "_memory", lambda self, call: (2, 1))
    return Clock(torch.device("cuda"), queue=queue), queue


def test_the_clock_says_how_it_timed(gpu_clock: tuple[Clock, FakeQueue]) -> None:
    clock, queue = gpu_clock
    alone = clock.measure(queue.call(0.5, 0.2))
    assert (alone.timer, alone.times.runs) == (DEVICE_ALONE, 200)
    assert alone.times.median_ms == pytest.approx(0.2)
    assert alone.host_ms == pytest.approx(0.504)

    def waits() -> None:
        queue.call(0.1, 4.0)()
        queue.synchronize()

    assert clock.measure(waits).timer == DEVICE_OR_HOST
    seen = clock.measure_with_host(queue.call(0.5, 0.2))
    assert (seen.timer, seen.host_ms) == (WITH_HOST, None)
    assert seen.times.median_ms > 0.5 - FLUSH
    long = clock.measure(queue.call(0.5, 100.0))
    assert long.times.runs == 5
    assert (long.peak_bytes, long.extra_bytes) == (2, 1)
