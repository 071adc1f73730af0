"""One attention layer through the engine, by every method, beside dense attention.

The inputs are planted (see `planted_inputs`) such that vertical-slash at its published settings
finds the wanted density; a method's layer is the mean over several layers on the same inputs, so
that what the first finds (pivots, lenders) is spread over those that use it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sp_profile.bench.check import Check, Inputs, check_output
from sp_profile.bench.clock import WITH_HOST, Clock, Measured
from sp_profile.bench.clocked import ClockedKernels, LayerParts, Spans, layer_parts
from sp_profile.bench.environment import Environment, environment
from sp_profile.bench.inputs import LayerShape, Planting, planted_inputs, require_plantable
from sp_profile.bench.masks import require_density
from sp_profile.bench.methods import Method, Prepared, prepare
from sp_profile.bench.peers import dense_backends
from sp_profile.bench.stats import TimeStats
from sp_runtime.engine import Engine
from sp_runtime.errors import UnsupportedError
from sp_runtime.kernels.base import Kernels
from sp_runtime.operating_point import OperatingPoint

SCHEMA = "sp.bench.layer"
_BREAKDOWN_RUNS = 5
_Attend = Callable[[Engine, Inputs, int], Tensor]


@dataclass(frozen=True, kw_only=True, slots=True)
class DenseLayer:
    """The fastest dense attention at one length: its backend and times, and those of the others."""

    backend: str
    times: TimeStats
    others: tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerRow:
    """One method at one length, per layer.

    status: "ok" or "wrong" (the output is not attention over the chosen blocks; no figures then).
    sparse: whether any layer was; none is under the method's min_tokens, and with method dense.
    density: blocks computed / causal blocks; columns: planted.
    What a user sees, the host's launches included: times, of a layer as the engine runs it; dense
    and speedup, dense median / median; parts, of a run with events around every step; overhead,
    estimate, decision and index as a share of them.
    Of the device alone: graph_ms, the same layers replayed from a CUDA graph, graph_problem why
    there is none; device_parts, the steps of a run that the host had queued before it began, None
    where it could not, and on CPU.
    """

    method: str
    shape: LayerShape
    layers: int
    status: str
    problem: str
    sparse: bool
    columns: int
    density: float
    check: Check
    times: TimeStats | None
    parts: LayerParts | None
    overhead: float | None
    device_parts: LayerParts | None
    graph_ms: float | None
    graph_problem: str
    dense: DenseLayer
    speedup: float | None
    peak_bytes: int | None
    extra_bytes: int | None
    environment: Environment


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossover:
    """The shortest measured length from which a method beats dense attention at every longer one.

    Lengths at which the method ran densely do not count. estimate: where the speed-up passes 1,
    interpolated between the lengths on a logarithmic scale; both are None where no length is
    faster.
    """

    method: str
    tokens: int | None
    estimate: float | None


class LayerBench:
    """Measures layers on one device.

    layers: numbers of the attention layers of one run. seed: of the planted inputs.
    """

    def __init__(
        self,
        kernels: Kernels,
        device: torch.device,
        clock: Clock,
        *,
        layers: Sequence[int],
        seed: int,
    ) -> None:
        self._kernels = kernels
        self._device = device
        self._clock = clock
        self._numbers = tuple(layers)
        self._layers = len(self._numbers)
        self._seed = seed

    def plant(self, shape: LayerShape, density: float) -> tuple[Inputs, int]:
        """Inputs in which vertical-slash stays just under `density`, and their planted columns.

        density: in (0, 1], of the causal blocks. It grows with the columns: planted are the most
        that stay under it, to within a sixteenth of them, and none where one is too many, as the
        published minimum budget alone may be. Raises UsageError as `require_density` and
        `require_plantable`.
        """
        require_density(density)
        require_plantable(shape)
        low, high = 0, max(1, shape.grid.num_cols)
        while high - low > max(1, low // 16):
            middle = (low + high) // 2
            if self._density(self._planted(shape, middle)) < density:
                low = middle
            else:
                high = middle
        return self._planted(shape, low), low

    def dense(self, inputs: Inputs) -> DenseLayer:
        """Every backend of SDPA that takes the inputs; the fastest stands for dense attention.

        Raises UnsupportedError where none does.
        """
        found: dict[str, TimeStats] = {}
        for name, run in dense_backends(self._device).items():
            with torch.inference_mode():
                try:
                    found[name] = self._clock.measure_with_host(partial(run, inputs)).times
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError:  # the backend takes no such inputs
                    continue
        if not found:
            raise UnsupportedError(
                f"no fast dense attention takes {inputs.q.dtype} on {self._device}",
                hint="pass --dtype bfloat16",
            )
        backend = min(found, key=lambda name: found[name].median_ms)
        others = tuple((name, times.median_ms) for name, times in found.items() if name != backend)
        return DenseLayer(backend=backend, times=found[backend], others=others)

    def row(
        self, shape: LayerShape, inputs: Inputs, columns: int, method: Method, dense: DenseLayer
    ) -> LayerRow:
        """One method on one set of inputs."""
        spans = Spans(self._device)
        clocked = ClockedKernels(self._kernels, spans)
        ready = prepare(method, shape, self._numbers, self._device)
        with torch.inference_mode():
            check, found = self._check(clocked, inputs, ready)
            measured: Measured | None = None
            parts: tuple[LayerParts | None, LayerParts | None] = (None, None)
            graph: tuple[float | None, str] = (None, "")
            if check.ok:
                forward = self._forward(ready.engine(self._kernels), inputs)
                measured = self._clock.measure_with_host(forward)
                parts = self._parts(clocked, spans, inputs, ready, sparse=found is not None)
                graph = self._graph(forward)
        problem = "" if check.ok else f"relative error {check.error:.3g} exceeds {check.bound:g}"
        times = None if measured is None else _per_layer(measured.times, self._layers)
        return LayerRow(
            method=method.label,
            shape=shape,
            layers=self._layers,
            status="ok" if check.ok else "wrong",
            problem=problem,
            sparse=found is not None,
            columns=columns,
            density=1.0 if found is None else found,
            check=check,
            times=times,
            parts=parts[0],
            overhead=None if parts[0] is None else parts[0].overhead,
            device_parts=parts[1],
            graph_ms=graph[0],
            graph_problem=graph[1],
            dense=dense,
            speedup=None if times is None else dense.times.median_ms / times.median_ms,
            peak_bytes=None if measured is None else measured.peak_bytes,
            extra_bytes=None if measured is None else measured.extra_bytes,
            environment=environment(self._device, _timer_of(measured)),
        )

    def _planted(self, shape: LayerShape, columns: int) -> Inputs:
        return planted_inputs(shape, Planting(columns=columns), self._device, self._seed)

    def _density(self, inputs: Inputs) -> float:
        point = OperatingPoint(method="vertical_slash", min_tokens=1)
        shape = LayerShape(
            length=inputs.grid.kv_len,
            heads=inputs.q.shape[1],
            kv_heads=inputs.k.shape[1],
            head_dim=inputs.q.shape[3],
            block_size=inputs.grid.block_size,
            dtype=str(inputs.q.dtype).removeprefix("torch."),
        )
        method = Method(label="vertical_slash", point=point, profile=None)
        engine = prepare(method, shape, self._numbers, self._device).engine(self._kernels)
        with torch.inference_mode():
            engine.begin(q_len=shape.length, kv_len=shape.length)
            _attend(engine, inputs, 0)
        found = engine.report.summary().totals.density
        assert found is not None
        return found

    def _forward(
        self, engine: Engine, inputs: Inputs, attend_of: Callable[[int], _Attend] | None = None
    ) -> Callable[[], Tensor]:
        """attend_of: what attends in a layer, `_attend` if left out."""

        def forward() -> Tensor:
            engine.report.clear()
            engine.begin(q_len=inputs.grid.q_len, kv_len=inputs.grid.kv_len)
            for layer in self._numbers:
                attend = _attend if attend_of is None else attend_of(layer)
                out = attend(engine, inputs, layer)
            return out

        return forward

    def _check(
        self, clocked: ClockedKernels, inputs: Inputs, ready: Prepared
    ) -> tuple[Check, float | None]:
        """The last layer's output against the blocks that were chosen for it, and the density of
        the sparse layers, None where there was none."""
        engine = ready.engine(clocked)
        out = self._forward(engine, inputs)()
        if clocked.index is None:  # every head dense: a short prompt, or method dense
            mask = inputs.grid.causal_mask(self._device).expand(1, inputs.q.shape[1], -1, -1)
            return check_output(out, inputs, mask, seed=self._seed), None
        check = check_output(out, inputs, clocked.index.to_mask(), seed=self._seed)
        return check, engine.report.summary().totals.density

    def _parts(
        self,
        clocked: ClockedKernels,
        spans: Spans,
        inputs: Inputs,
        ready: Prepared,
        *,
        sparse: bool,
    ) -> tuple[LayerParts, LayerParts | None]:
        """Medians of the parts over some runs: with the host, and of the device alone."""
        # Layers that the method leaves dense call no kernel of the protocol.
        dense: _Attend = spans.timed("attention", _attend)
        first_sparse = ready.point.dense_layers

        def attend_of(layer: int) -> _Attend:
            return dense if layer < first_sparse else _attend

        forward = spans.timed("all", self._forward(ready.engine(clocked), inputs, attend_of))
        forward()

        def parts() -> LayerParts:
            return layer_parts(spans.take(), total="all", layers=self._layers, sparse=sparse)

        spans.take()
        seen = []
        for _ in range(_BREAKDOWN_RUNS):
            forward()
            seen.append(parts())
        timer = self._clock.device_timer()
        if timer is None:
            return _median(seen), None
        launch_ms = timer.launch_ms(forward)
        spans.take()
        runs = [(timer.ahead(forward, launch_ms), parts()) for _ in range(_BREAKDOWN_RUNS)]
        alone = [found for on_time, found in runs if on_time]
        return _median(seen), _median(alone) if alone else None

    def _graph(self, forward: Callable[[], Tensor]) -> tuple[float | None, str]:
        """Milliseconds a layer of a graph's replay, or why the layers cannot be captured."""
        if self._device.type != "cuda":
            return None, "needs a CUDA GPU"
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                forward()
        except RuntimeError as error:
            return None, " ".join(str(error).split())[:200]
        times = self._clock.measure(graph.replay).times
        return times.median_ms / self._layers, ""


def crossovers(rows: Sequence[LayerRow]) -> tuple[Crossover, ...]:
    """Of every method among the rows; a row that ran densely would compare dense with itself."""
    found = []
    for method in dict.fromkeys(row.method for row in rows):
        speeds = sorted(
            (row.shape.length, row.speedup)
            for row in rows
            if row.method == method and row.sparse and row.speedup is not None
        )
        found.append(_crossover(method, speeds))
    return tuple(found)


def _crossover(method: str, speeds: Sequence[tuple[int, float]]) -> Crossover:
    faster = len(speeds)
    while faster and speeds[faster - 1][1] >= 1:
        faster -= 1
    if faster == len(speeds):
        return Crossover(method=method, tokens=None, estimate=None)
    tokens, speed = speeds[faster]
    if faster == 0:
        return Crossover(method=method, tokens=tokens, estimate=None)
    before, slower = speeds[faster - 1]
    share = -math.log(slower) / (math.log(speed) - math.log(slower))
    estimate = math.exp(math.log(before) + share * (math.log(tokens) - math.log(before)))
    return Crossover(method=method, tokens=tokens, estimate=estimate)


def _timer_of(measured: Measured | None) -> str:
    if measured is None:
        return ""
    if measured.timer == WITH_HOST:
        return f"{WITH_HOST}; graph_ms and device_parts: device time alone"
    return measured.timer


def _median(parts: Sequence[LayerParts]) -> LayerParts:
    return sorted(parts, key=lambda each: each.total_ms)[len(parts) // 2]


def _attend(engine: Engine, inputs: Inputs, layer: int) -> Tensor:
    return engine.attend(layer=layer, q=inputs.q, k=inputs.k, v=inputs.v, scale=inputs.scale)


def _per_layer(times: TimeStats, layers: int) -> TimeStats:
    return dataclasses.replace(
        times,
        median_ms=times.median_ms / layers,
        p20_ms=times.p20_ms / layers,
        p80_ms=times.p80_ms / layers,
    )
