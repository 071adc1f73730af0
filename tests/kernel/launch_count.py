"""Counts what a layer of a sparse prefill starts on the device, without one.

The Triton backend runs on small CPU tensors with its launches recorded instead of made, so every
choice is arbitrary; what runs depends on shapes alone. Of torch's operators those count that start
a kernel: not views, and not allocations.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sp_runtime.kernels.program import Program

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
def counted(
    note: Callable[[Program, dict[str, Tensor]], None] | None = None,
) -> Iterator[Counter[str]]:
    """What starts inside, by name: Triton kernels and torch operators.

    note: is told of every kernel and its tensors.
    """
    counts: Counter[str] = Counter()
    start = Program.__call__

    def recorded(program: Program, **tensors: Tensor) -> None:
        counts.update([program.kernel.__name__])
        names = [param.name for param in program.kernel.params]
        assert names[: len(tensors)] == list(tensors), "tensors come first, in order"
        if note is not None:
            note(program, tensors)

    Program.__call__ = recorded  # type: ignore[method-assign]
    try:
        with _Operators(counts):
            yield counts
    finally:
        Program.__call__ = start  # type: ignore[method-assign]
