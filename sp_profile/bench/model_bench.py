"""Time to first token of a model of Llama-3.1-8B's shape with random weights, by method.

Random weights attend almost evenly, so that no method would find anything sparse in them. The
queries and keys of every layer are therefore replaced, after the projections and the rotary
embedding, by planted ones (see `planted_inputs`): all the model's work stays, and attention has a
known structure.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sp_profile.bench.check import Inputs
from sp_profile.bench.clock import Clock
from sp_profile.bench.clocked import ClockedKernels, Spans
from sp_profile.bench.environment import Environment, environment
from sp_profile.bench.inputs import LayerShape, random_inputs, require_groups
from sp_profile.bench.layer_bench import LayerBench
from sp_profile.bench.methods import Method, prepare
from sp_profile.bench.peers import dense_backends
from sp_profile.bench.stats import TimeStats, time_stats
from sp_profile.timing import peak_memory, synchronize
from sp_runtime.block_index import BlockGrid
from sp_runtime.engine import Engine
from sp_runtime.errors import UsageError
from sp_runtime.integrations.transformers import (
    AttentionHandler,
    ForwardCall,
    attention_session,
)
from sp_runtime.kernels.base import Kernels

SCHEMA = "sp.bench.model"
_SESSION = "sp_bench"
_TIMER = (
    "ttft: host clock around a forward that the host waits for; parts: one forward with events "
    "around them (a clock on CPU), the host's launches included"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelShape:
    """A Llama by its sizes, all of 1 or more; the defaults are Llama-3.1-8B's.

    Raises UsageError for sizes that make no Llama: KV heads divide the query heads, which divide
    the width (whatever head_dim is), and rotary embedding turns pairs of dimensions.
    """

    layers: int = 32
    hidden: int = 4096
    intermediate: int = 14336
    vocabulary: int = 128256
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128

    def __post_init__(self) -> None:
        require_groups(self.heads, self.kv_heads)
        if self.hidden % self.heads:
            raise UsageError(
                f"width {self.hidden} is no multiple of {self.heads} query heads",
                hint=f"the nearest that are: {self._near_widths()}",
            )
        if self.head_dim % 2:
            raise UsageError(
                f"head_dim {self.head_dim} is odd, which rotary embedding cannot turn",
                hint=f"take {self.head_dim + 1}",
            )

    def _near_widths(self) -> str:
        below = self.hidden // self.heads * self.heads
        return " and ".join(str(width) for width in (below, below + self.heads) if width)


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelParts:
    """Milliseconds of a prefill with events around its parts; rest is what no part took.

    index: estimate, decision and index. attention: the attention kernel with block masses.
    """

    attention_ms: float
    index_ms: float
    mlp_ms: float
    rest_ms: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRow:
    """One method at one length.

    density, estimation: blocks over causal blocks (1 and 0 for dense). ttft: the whole forward,
    cache and logits of the last position included. speedup: dense median / median, None for dense.
    """

    method: str
    model: ModelShape
    length: int
    dtype: str
    planted_columns: int | None
    density: float
    estimation: float
    ttft: TimeStats
    parts: ModelParts
    speedup: float | None
    peak_bytes: int | None
    environment: Environment


def build_model(shape: ModelShape, length: int, dtype: str, device: torch.device) -> nn.Module:
    """A LlamaForCausalLM of random weights on the device."""
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        max_position_embeddings=max(length, 131072),
        vocab_size=shape.vocabulary,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return model.eval().requires_grad_(False)


class ModelBench:
    """Measures one model.

    Every method runs once before it is timed, at the first length only: kernels are compiled for
    every length at once, and a second warm-up of a long prompt costs as much as a measurement.
    repeat: timed forwards of every method. plant_density: what planted queries and keys aim at, or
    None for the model's own.
    """

    def __init__(
        self,
        model: nn.Module,
        shape: ModelShape,
        *,
        dtype: str,
        block_size: int,
        kernels: Kernels,
        device: torch.device,
        repeat: int,
        seed: int,
        plant_density: float | None,
    ) -> None:
        self._model: Any = model
        self._shape = shape
        self._dtype = dtype
        self._block_size = block_size
        self._kernels = kernels
        self._device = device
        self._repeat = repeat
        self._seed = seed
        self._plant_density = plant_density
        self._warm: set[str] = set()

    def rows(self, length: int, methods: Sequence[Method]) -> Iterator[ModelRow]:
        """Dense attention first (SDPA's fastest backend at this length), then every method."""
        layer = LayerShape(
            length=length,
            heads=self._shape.heads,
            kv_heads=self._shape.kv_heads,
            head_dim=self._shape.head_dim,
            block_size=self._block_size,
            dtype=self._dtype,
        )
        clock = Clock(self._device, repeat=3)
        bench = LayerBench(self._kernels, self._device, clock, layers=range(1), seed=self._seed)
        planted, columns = None, None
        if self._plant_density is not None:
            planted, columns = bench.plant(layer, self._plant_density)
        sample = random_inputs(layer, self._device, self._seed) if planted is None else planted
        backend = bench.dense(sample).backend
        del sample
        work = _Work(layer=layer, planted=planted, columns=columns)
        dense = self._dense_row(work, backend)
        yield dense
        for method in methods:
            yield self._sparse_row(work, method, dense.ttft)

    def _dense_row(self, work: _Work, backend: str) -> ModelRow:
        handler = work.plant(_Dense(backend, self._device, self._block_size))
        ttft, peak = self._ttft("dense", work.layer.length, handler)
        spans = self._spans(work.layer.length, handler, Spans(self._device))
        return ModelRow(
            method=f"dense ({backend})",
            density=1.0,
            estimation=0.0,
            ttft=ttft,
            parts=model_parts(spans, sparse=False),
            speedup=None,
            peak_bytes=peak,
            **self._facts(work),
        )

    def _sparse_row(self, work: _Work, method: Method, dense: TimeStats) -> ModelRow:
        ready = prepare(method, work.layer, range(self._shape.layers), self._device)
        engine = ready.engine(self._kernels)
        ttft, peak = self._ttft(method.label, work.layer.length, work.plant(_Sparse(engine)))
        totals = engine.report.summary().totals
        spans = Spans(self._device)
        clocked = ready.engine(ClockedKernels(self._kernels, spans))
        handler = work.plant(_Sparse(clocked))
        left_dense = method.point.dense_layers
        found = self._spans(work.layer.length, handler, spans, dense_layers=left_dense)
        return ModelRow(
            method=method.label,
            density=1.0 if totals.density is None else totals.density,
            estimation=totals.estimation or 0.0,
            ttft=ttft,
            parts=model_parts(found, sparse=totals.density is not None),
            speedup=dense.median_ms / ttft.median_ms,
            peak_bytes=peak,
            **self._facts(work),
        )

    def _facts(self, work: _Work) -> dict[str, Any]:
        return {
            "model": self._shape,
            "length": work.layer.length,
            "dtype": self._dtype,
            "planted_columns": work.columns,
            "environment": environment(self._device, _TIMER),
        }

    def _ttft(
        self, label: str, length: int, handler: AttentionHandler
    ) -> tuple[TimeStats, int | None]:
        """Host clock around forwards that the host waits for, and the peak of device memory."""
        with attention_session(self._model, handler, name=_SESSION):
            if label not in self._warm:
                self._forward(length)
                self._warm.add(label)
            with peak_memory(self._device) as peak:
                times = [self._forward(length) for _ in range(self._repeat)]
                return time_stats(times), peak()

    def _spans(
        self, length: int, handler: AttentionHandler, spans: Spans, *, dense_layers: int = 0
    ) -> dict[str, float]:
        """One forward with events around every attention call and every MLP."""
        handler = _Timed(handler, spans, dense_layers)
        layers = [layer.mlp for layer in self._model.model.layers]
        with attention_session(self._model, handler, name=_SESSION):
            for mlp in layers:
                mlp.forward = spans.timed("mlp", mlp.forward)
            try:
                spans.timed("all", self._forward)(length)
            finally:
                for mlp in layers:
                    del mlp.forward
        return spans.take()

    def _forward(self, length: int) -> float:
        """Milliseconds of one prefill, with a cache and the logits of the last position."""
        generator = torch.Generator(self._device).manual_seed(self._seed)
        ids = torch.randint(
            0, self._shape.vocabulary, (1, length), generator=generator, device=self._device
        )
        synchronize(self._device)
        start = time.perf_counter()
        with torch.inference_mode():
            self._model(ids, use_cache=True, logits_to_keep=1)
        synchronize(self._device)
        return 1e3 * (time.perf_counter() - start)


def model_parts(spans: dict[str, float], *, sparse: bool) -> ModelParts:
    """The parts from the spans "all", "layer" and "mlp", and those of the kernels."""
    layer, mlp = spans["layer"], spans["mlp"]
    kernel = spans.get("attention", 0.0) + spans.get("mass", 0.0) if sparse else layer
    return ModelParts(
        attention_ms=kernel,
        index_ms=layer - kernel,
        mlp_ms=mlp,
        rest_ms=spans["all"] - layer - mlp,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Work:
    """One length: the layer's shape, and what is planted in every layer, if anything."""

    layer: LayerShape
    planted: Inputs | None
    columns: int | None

    def plant(self, handler: AttentionHandler) -> AttentionHandler:
        return handler if self.planted is None else _Planted(handler, self.planted)


class _Dense:
    """Every layer by one backend of SDPA."""

    def __init__(self, backend: str, device: torch.device, block_size: int) -> None:
        self._run = dense_backends(device)[backend]
        self._block_size = block_size

    def begin(self, call: ForwardCall) -> None:
        """Dense layers keep no state."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        grid = BlockGrid(q_len=q.shape[2], kv_len=k.shape[2], block_size=self._block_size)
        inputs = Inputs(q=q, k=k, v=v, grid=grid, scale=scale)
        return self._run(inputs)


class _Sparse:
    """Every layer by the engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def begin(self, call: ForwardCall) -> None:
        self._engine.report.clear()
        self._engine.begin(q_len=call.q_len, kv_len=call.kv_len)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        return self._engine.attend(layer=layer, q=q, k=k, v=v, scale=scale)


class _Planted:
    """Another handler, with planted queries and keys in place of the model's."""

    def __init__(self, handler: AttentionHandler, planted: Inputs) -> None:
        self._handler = handler
        self._planted = planted

    def begin(self, call: ForwardCall) -> None:
        self._handler.begin(call)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        assert q.shape == self._planted.q.shape
        assert k.shape == self._planted.k.shape
        return self._handler.attend(layer, self._planted.q, self._planted.k, v, scale)


class _Timed:
    """Another handler, whose layers are timed as "layer".

    dense_layers: the first ones, which a sparse method leaves dense; as they call no kernel of the
    protocol, they are timed as "attention" here.
    """

    def __init__(self, handler: AttentionHandler, spans: Spans, dense_layers: int) -> None:
        self._begin = handler.begin
        self._attend = spans.timed("layer", handler.attend)
        self._dense = spans.timed("layer", spans.timed("attention", handler.attend))
        self._dense_layers = dense_layers

    def begin(self, call: ForwardCall) -> None:
        self._begin(call)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        attend = self._dense if layer < self._dense_layers else self._attend
        out: Tensor = attend(layer, q, k, v, scale)
        return out
