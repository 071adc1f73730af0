"""Where the time of a sparse layer goes: events around every call of the kernels protocol."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sp_runtime.block_index import BlockIndex
from sp_runtime.kernels.base import Kernels

# Protocol calls by the part they belong to; whatever is not named here decides.
PART_OF = {
    "last_block": "estimate",
    "sampled_mass": "estimate",
    "build_index": "index",
    "attention": "attention",
    "block_mass": "mass",
}
PARTS = ("estimate", "decision", "index", "attention", "mass")


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerParts:
    """Milliseconds of each part of a layer's attention; decision is what no other part took."""

    estimate_ms: float
    decision_ms: float
    index_ms: float
    attention_ms: float
    mass_ms: float

    @property
    def total_ms(self) -> float:
        return (
            self.estimate_ms + self.decision_ms + self.index_ms + self.attention_ms + self.mass_ms
        )

    @property
    def overhead(self) -> float:
        """Estimate, decision and index as a share of the whole."""
        return (self.estimate_ms + self.decision_ms + self.index_ms) / self.total_ms


class Spans:
    """Named spans of time: CUDA events on a GPU, a monotonic clock on CPU; no synchronisation."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, every call of which adds to the span `name`."""

        def on_gpu(*args: Any, **kwargs: Any) -> Any:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            result = function(*args, **kwargs)
            end.record()
            self._events.append((name, start, end))
            return result

        def on_cpu(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - start
            return result

        return on_gpu if self._device.type == "cuda" else on_cpu

    def take(self) -> dict[str, float]:
        """Milliseconds of each name so far, which are forgotten; waits for the device."""
        if self._events:
            torch.cuda.synchronize(self._device)
        found = {name: 1e3 * seconds for name, seconds in self._seconds.items()}
        for name, start, end in self._events:
            found[name] = found.get(name, 0.0) + start.elapsed_time(end)
        self._events, self._seconds = [], {}
        return found


class ClockedKernels:
    """A kernel backend whose protocol calls are timed; it also keeps the last index it was given.

    Delegates by name, so that a protocol that grows stays covered.
    """

    def __init__(self, kernels: Kernels, spans: Spans) -> None:
        self.name = kernels.name
        self.index: BlockIndex | None = None
        self._kernels = kernels
        self._spans = spans

    def attention(
        self, q: Tensor, k: Tensor, v: Tensor, index: BlockIndex, *, scale: float
    ) -> tuple[Tensor, Tensor]:
        """See `Kernels.attention`."""
        self.index = index
        call = self._spans.timed("attention", self._kernels.attention)
        out, lse = call(q, k, v, index, scale=scale)
        return out, lse

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._kernels, name)
        if not callable(found) or name.startswith("_"):
            return found
        return self._spans.timed(PART_OF.get(name, "decision"), found)


def layer_parts(
    spans: dict[str, float], *, total: str, layers: int, sparse: bool = True
) -> LayerParts:
    """Parts of one layer from the spans of `layers` of them, `total` the span around them all.

    sparse: whether any of them was; where none was, all of it is attention.
    """
    mean = {name: ms / layers for name, ms in spans.items()}
    if not sparse:
        return LayerParts(
            estimate_ms=0.0, decision_ms=0.0, index_ms=0.0, attention_ms=mean[total], mass_ms=0.0
        )
    named = sum(mean.get(part, 0.0) for part in PARTS if part != "decision")
    return LayerParts(
        estimate_ms=mean.get("estimate", 0.0),
        decision_ms=max(0.0, mean[total] - named),
        index_ms=mean.get("index", 0.0),
        attention_ms=mean.get("attention", 0.0),
        mass_ms=mean.get("mass", 0.0),
    )
