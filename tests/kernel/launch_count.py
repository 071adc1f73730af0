"""Counts what a layer of a sparse prefill starts on the device, without one.

The Triton backend runs on small CPU tensors with its launches recorded instead of made, so every
choice is arbitrary; what runs depends on shapes alone. Of torch's operators those count that start
a kernel: not views, and not allocations.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from sp_runtime.kernels import (
    triton_backend,
    triton_estimate,
    triton_sampled,
    triton_select,
    triton_share,
)

MODULES = (triton_backend, triton_estimate, triton_sampled, triton_select, triton_share)
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "alias"}


class _Operators(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if not func.is_view and name not in ALLOCATIONS:
            self._counts[name] += 1
        out = func(*args, **(kwargs or {}))
        # An index that no kernel has written must still lie inside.
        return out.zero_() if name.startswith(("empty", "new_empty")) else out


@contextlib.contextmanager
def counted() -> Iterator[Counter[str]]:
    """What starts inside, by name: Triton kernels and torch operators."""
    counts: Counter[str] = Counter()
    kept = [(module, module.launch, module.on_device) for module in MODULES]
    for module in MODULES:
        module.launch = lambda kernel, *_, **__: counts.update([kernel.__name__])  # type: ignore
        module.on_device = lambda tensor: contextlib.nullcontext()  # type: ignore
    try:
        with _Operators(counts):
            yield counts
    finally:
        for module, launch, on_device in kept:
            module.launch, module.on_device = launch, on_device  # type: ignore
