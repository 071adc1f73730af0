"""The steps of a layer: those a user waits for, and those of the device alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from sp_profile.bench.clock import WALL_CLOCK, Clock
from sp_profile.bench.inputs import LayerShape
from sp_profile.bench.layer_bench import LayerBench, LayerRow
from sp_profile.bench.methods import bench_method
from sp_runtime.kernels.reference import ReferenceKernels

CPU = torch.device("cpu")
SHAPE = LayerShape(length=300, heads=2, kv_heads=1, head_dim=64, block_size=64, dtype="float32")


class Timer:
    """Stands for `DeviceTimer`: runs calls, and says of each whether it was queued in time."""

    def __init__(self, on_time: Iterable[bool]) -> None:
        self.on_time = iter(on_time)
        self.launches: list[float] = []

    def launch_ms(self, call: Callable[[], Any]) -> float:
        call()
        return 1.5

    def ahead(self, call: Callable[[], Any], launch_ms: float) -> bool:
        call()
        self.launches.append(launch_ms)
        return next(self.on_time)


def measured(monkeypatch: pytest.MonkeyPatch, timer: Timer | None) -> LayerRow:
    clock = Clock(CPU, repeat=1)
    monkeypatch.setattr(clock, "device_timer", lambda: timer)
    bench = LayerBench(ReferenceKernels(), CPU, clock, layers=range(2), seed=0)
    inputs, columns = bench.plant(SHAPE, 0.5)
    method = bench_method("vertical_slash:min_tokens=1:min_budget=64", None)
    return bench.row(SHAPE, inputs, columns, method, bench.dense(inputs))


def test_runs_that_the_host_held_up_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    timer = Timer([False, True, False, True, True])
    row = measured(monkeypatch, timer)
    assert timer.launches == [1.5] * 5
    assert row.device_parts is not None
    assert 0 < row.device_parts.attention_ms < row.device_parts.total_ms
    assert row.environment.timer == WALL_CLOCK


@pytest.mark.parametrize("timer", [Timer([False] * 5), None], ids=["all late", "no device"])
def test_no_figure_is_better_than_the_hosts(
    monkeypatch: pytest.MonkeyPatch, timer: Timer | None
) -> None:
    row = measured(monkeypatch, timer)
    assert row.device_parts is None
    assert row.parts is not None
    assert row.times is not None
