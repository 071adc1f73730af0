"""Clocks of a prefill: wall time, time spent in attention functions, peak device memory."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def synchronize(device: torch.device) -> None:
    """Wait for the device's work; nothing to wait for on CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class AttentionClock:
    """Adds up the time of attention calls: CUDA events on a GPU, a monotonic clock on CPU."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, with its calls added to this clock; no synchronisation."""

        def on_gpu(*args: Any, **kwargs: Any) -> Any:
            start = torch.cuda.Event(enable_timing=True)
            end = torch.cuda.Event(enable_timing=True)
            start.record()
            result = function(*args, **kwargs)
            end.record()
            self._events.append((start, end))
            return result

        def on_cpu(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            result = function(*args, **kwargs)
            self._seconds += time.perf_counter() - start
            return result

        return on_gpu if self._on_gpu else on_cpu

    def seconds(self) -> float:
        """Time so far; waits for the last recorded call on a GPU."""
        if self._events:
            self._events[-1][1].synchronize()
        return self._seconds + sum(start.elapsed_time(end) for start, end in self._events) / 1e3


@contextmanager
def attention_clock(model: nn.Module, device: torch.device) -> Iterator[AttentionClock]:
    """Time the attention function that `model` uses now, of every layer; restored on leaving.

    Python's garbage collection waits until then, as in `timeit`: a full one takes 0.2 s once torch
    and transformers are imported, and falls into one prefill or another.

    The function is found by name in transformers' table, so that an attached model and a plain one
    are timed in the same place: from projected, rotated q, k and v to the attention output.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS as table

    clock = AttentionClock(device)
    name = model.config.get_text_config()._attn_implementation  # type: ignore[operator, union-attr]
    previous = table._local_mapping.get(name)
    table[name] = clock.timed(table[name])
    collects = gc.isenabled()
    gc.disable()
    try:
        yield clock
    finally:
        if collects:
            gc.enable()
        del table[name]
        if previous is not None:
            table[name] = previous


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Callable[[], int | None]]:
    """Yields a function that tells the largest device memory in bytes so far; None on CPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
    else:
        yield lambda: None
