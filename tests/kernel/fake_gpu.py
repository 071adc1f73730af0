"""Triton's JIT without a GPU and without its compiler: kernels are found and started, none runs.

Binding, specialisation and the caches of the JIT are the real ones. Every key that the JIT would
compile gives one `FakeKernel`, which notes what it is started with. For processes of their own:
`install` cannot be undone.
"""

from __future__ import annotations

from typing import Any

import triton
from triton.backends.compiler import GPUTarget

CPU = -1  # as `Tensor.get_device` says of the tensors


class FakeDriver:
    """One device, an H100; stream 0."""

    def get_current_device(self) -> int:
        return CPU

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


class FakeKernel:
    """What one key of a kernel would compile to; the notes of all go into `started`."""

    packed_metadata = (4, 1, 0)

    def __init__(self, name: str, started: list[tuple[FakeKernel, tuple[Any, ...]]] | None) -> None:
        self.name = name
        self.function = id(self)
        self._started = started

    def run(self, *args: Any) -> None:
        if self._started is not None:
            self._started.append((self, args))

    def launch_metadata(self, *args: Any) -> None:
        """None, as without a launch hook."""


def install(started: list[tuple[FakeKernel, tuple[Any, ...]]] | None = None) -> None:
    """From now on launches of CPU tensors go to fake kernels, and their notes to `started`."""
    from sp_runtime.kernels import hopper_launch

    triton.compiler.compile = lambda src, **_: FakeKernel(src.fn.__name__, started)
    triton.runtime.driver.set_active(FakeDriver())
    triton.knobs.runtime.interpret = True  # CPU tensors are fine
    hopper_launch.multiprocessors = lambda device: 132  # type: ignore[assignment]
