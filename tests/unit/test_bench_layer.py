"""The steps of a layer: those a user waits for, and those of the device alone."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch

from sp_profile.bench.clock import WALL_CLOCK, Clock
from sp_profile.bench.inputs import LayerShape
from sp_profile.bench.layer_bench import LayerBench, LayerRow, crossovers
from sp_profile.bench.methods import bench_method
from sp_profile.bench.model_bench import ModelBench, ModelRow, ModelShape, build_model
from sp_runtime.dense_attention import dense_attention
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


def measured(
    monkeypatch: pytest.MonkeyPatch,
    timer: Timer | None,
    text: str = "vertical_slash:min_tokens=1:min_budget=64",
) -> LayerRow:
    clock = Clock(CPU, repeat=1)
    monkeypatch.setattr(clock, "device_timer", lambda: timer)
    bench = LayerBench(ReferenceKernels(), CPU, clock, layers=range(2), seed=0)
    inputs, columns = bench.plant(SHAPE, 0.5)
    return bench.row(SHAPE, inputs, columns, bench_method(text, None), bench.dense(inputs))


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


@pytest.mark.parametrize(
    "text", ["dense", "vertical_slash", "vertical_slash:min_tokens=1:dense_layers=2"]
)
def test_a_dense_run_is_attention_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    row = measured(monkeypatch, Timer([True] * 5), text)
    assert (row.sparse, row.density, row.overhead) == (False, 1.0, 0.0)
    for parts in (row.parts, row.device_parts):
        assert parts is not None
        assert parts.attention_ms == parts.total_ms > 0


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> float:
    """Milliseconds that the engine's dense attention takes at least."""

    def late(*args: Any, **options: Any) -> torch.Tensor:
        time.sleep(0.1)
        return dense_attention(*args, **options)

    monkeypatch.setattr("sp_runtime.engine.dense_attention", late)
    return 100.0


def test_layers_that_stay_dense_are_attention(monkeypatch: pytest.MonkeyPatch, slow: float) -> None:
    """One of two layers."""
    row = measured(monkeypatch, None, "vertical_slash:min_tokens=1:dense_layers=1")
    assert row.sparse
    assert row.parts is not None
    assert row.parts.attention_ms >= slow / 2 > row.parts.decision_ms > 0


def test_dense_runs_are_no_crossover(monkeypatch: pytest.MonkeyPatch) -> None:
    row = measured(monkeypatch, None)

    def at(length: int, speedup: float, *, sparse: bool) -> LayerRow:
        shape = dataclasses.replace(row.shape, length=length)
        return dataclasses.replace(row, shape=shape, speedup=speedup, sparse=sparse)

    mixed = [at(512, 1.01, sparse=False), at(1024, 0.5, sparse=True), at(2048, 2.0, sparse=True)]
    assert crossovers(mixed)[0].tokens == 2048
    assert crossovers([at(512, 1.01, sparse=False), at(1024, 1.5, sparse=True)])[0].tokens == 1024
    (only,) = crossovers([at(512, 1.01, sparse=False), at(1024, 1.02, sparse=False)])
    assert (only.tokens, only.estimate) == (None, None)


def test_layers_of_a_model_that_stay_dense_are_attention(slow: float) -> None:
    half, whole = model_rows("vertical_slash:min_tokens=1:dense_layers=1", "vertical_slash")
    assert half.parts.attention_ms >= slow > half.parts.index_ms > 0
    assert whole.parts.attention_ms >= 2 * slow
    assert whole.parts.index_ms == 0


def model_rows(*texts: str) -> list[ModelRow]:
    """Of two layers, at 300 tokens."""
    shape = ModelShape(
        layers=2, hidden=32, intermediate=32, vocabulary=64, heads=2, kv_heads=1, head_dim=16
    )
    bench = ModelBench(
        build_model(shape, 300, "float32", CPU),
        shape,
        dtype="float32",
        block_size=64,
        kernels=ReferenceKernels(),
        device=CPU,
        repeat=1,
        seed=0,
        plant_density=None,
    )
    return list(bench.rows(300, [bench_method(text, None) for text in texts]))[1:]
