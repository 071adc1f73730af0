"""The one place that starts a kernel, with as little host time a launch as Triton allows.

A layer of a sparse prefill starts about ten short kernels, and a small model waits for the host
that starts them. Most of a launch through Triton's JIT is finding the compiled binary: it binds
keywords, classifies every argument and parses options. All of that is the same in the next layer.
So a `Program` holds what does not change, and remembers the binary that the JIT has found; another
program, as of the next prompt's length, takes it over where Triton would compile the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from sp_runtime.errors import UnsupportedError
from sp_runtime.kernels.tuning import KernelConfig

# Makes the tensor descriptor of a tensor.
Describe = Callable[[Tensor], Any]

# The newest Triton whose `JITFunction.run` `_Binary.start` repeats; a later one does it itself.
_REPEATED = (3, 9)

# For functions that make programs from numbers. A forward takes one or two from most of them, and
# one for each size of a group of heads from some: this is room for many lengths, and not for all.
kept = functools.lru_cache(maxsize=512)

# Every kernel that the JIT has compiled for a program, by kernel, configuration and what else it
# was compiled for, see `_variant`; and the parameters of kernels. Kernels are told apart by
# identity: those of this package live as long as it does.
_COMPILED: dict[tuple[Any, ...], Any] = {}
_PARAMETERS: dict[int, tuple[_Parameter, ...]] = {}


def launch(kernel: Any, grid: tuple[int, ...], config: KernelConfig | None, **args: Any) -> Any:
    """Start a kernel through Triton's JIT; without a config, the memory-bound default.

    Returns the compiled kernel, or None under Triton's interpreter.
    """
    return kernel[grid](
        **args,
        num_warps=4 if config is None else config.num_warps,
        num_stages=1 if config is None else config.num_stages,
        # Explicit: later Triton versions switch it off, and s * c - m must stay one instruction.
        enable_fp_fusion=True,
    )


def on_device(tensor: Tensor) -> AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensor's."""
    if tensor.is_cuda:
        return torch.cuda.device(tensor.device)
    if not triton.knobs.runtime.interpret:
        raise UnsupportedError(
            f"the Triton kernels need CUDA tensors, not {tensor.device.type}",
            hint="use the reference kernels on this device",
        )
    return nullcontext()


@dataclass(frozen=True, slots=True)
class _Binary:
    """A compiled kernel and all arguments behind its tensors.

    described: place of every tensor descriptor, and a pattern of it that holds no tensor.
    """

    compiled: Any
    grid: tuple[int, int, int]
    rest: tuple[Any, ...]
    described: tuple[tuple[int, Any], ...]
    driver: Any

    def start(self, device: int, tensors: list[Tensor], pointers: list[Any]) -> None:
        for place, pattern in self.described:
            pointers[place] = _moved(pattern, tensors[place])
        compiled = self.compiled
        # As `JITFunction.run` does of Triton 3.6 to 3.9, without hooks and their metadata. A
        # pointer as a number spares the driver a look at where it lies.
        compiled.run(
            *self.grid,
            self.driver.get_current_stream(device),
            compiled.function,
            compiled.packed_metadata,
            None,
            None,
            None,
            *pointers,
            *self.rest,
        )


class Program:
    """A kernel with its grid, its configuration and every argument but the tensors.

    Call it with the tensors, by name and in the order of the kernel's parameters, which they come
    first of. The first call with tensors of some dtypes and alignments on a device goes through
    Triton's JIT, unless another program has been there with the same, and so does every call while
    somebody has set a launch hook or under the interpreter; the others start the binary that the
    first one has found. It is the right one: Triton chooses by scalars, which are this program's,
    and by what keys `_binaries`. All tensors are on the device of the first: unlike the JIT, nobody
    looks where the others lie.

    described: makes the descriptors of those tensors that the kernel reads through one; shapes and
        strides must be the same in every call.
    """

    __slots__ = ("_binaries", "config", "described", "grid", "kernel", "scalars")

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        config: KernelConfig | None = None,
        *,
        described: Mapping[str, Describe] | None = None,
        **scalars: Any,
    ) -> None:
        self.kernel = kernel
        self.grid = grid
        self.config = config
        self.described = described or {}
        self.scalars = scalars
        self._binaries: dict[tuple[Any, ...], _Binary] = {}

    def __call__(self, **tensors: Tensor) -> None:
        values = list(tensors.values())
        pointers: list[Any] = [tensor.data_ptr() for tensor in values]
        bits = 0
        for pointer in pointers:
            bits |= pointer
        # Triton compiles for pointers that are multiples of 16 bytes, and for others.
        odd = bits % 16 and tuple([pointer % 16 == 0 for pointer in pointers])
        device = values[0].get_device()
        key = (device, odd, *[tensor.dtype for tensor in values])
        binary = self._binaries.get(key)
        if binary is None or _hooked():
            binary = self._first(key, tensors)
        if binary is None:  # the JIT has started it
            return
        if device == binary.driver.get_current_device():
            binary.start(device, values, pointers)
        else:
            with on_device(values[0]):
                binary.start(device, values, pointers)

    def arguments(self, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
        """Every argument of the kernel by name, as the JIT takes them."""
        found: dict[str, Any] = {}
        for name, tensor in tensors.items():
            describe = self.described.get(name)
            # Masks are bytes to the kernels.
            plain = tensor.view(torch.uint8) if tensor.dtype is torch.bool else tensor
            found[name] = plain if describe is None else describe(tensor)
        return found | self.scalars

    def _first(self, key: tuple[Any, ...], tensors: Mapping[str, Tensor]) -> _Binary | None:
        """The binary of a first call, to be started, or None once the JIT has started it."""
        arguments = self.arguments(tensors)
        variant = None
        if _direct(self.kernel):
            parameters = _parameters(self.kernel)
            variant = (id(self.kernel), self.config, *_variant(parameters, key, arguments))
            compiled = _COMPILED.get(variant)
            if compiled is not None:
                return self._keep(key, parameters, arguments, compiled)
        with on_device(next(iter(tensors.values()))):
            compiled = launch(self.kernel, self.grid, self.config, **arguments)
        if variant is not None and compiled is not None:
            _COMPILED[variant] = compiled
            self._keep(key, parameters, arguments, compiled)
        return None

    def _keep(
        self,
        key: tuple[Any, ...],
        parameters: tuple[_Parameter, ...],
        arguments: Mapping[str, Any],
        compiled: Any,
    ) -> _Binary:
        count = len(arguments) - len(self.scalars)
        names = [param.name for param in parameters]
        assert names[:count] == list(arguments)[:count], "tensors come first, in order"
        binary = _Binary(
            compiled=compiled,
            grid=(*self.grid, 1, 1)[:3],  # type: ignore[arg-type]
            rest=tuple([arguments[name] for name in names[count:]]),
            described=tuple(
                [(names.index(name), _moved(arguments[name], None)) for name in self.described]
            ),
            driver=triton.runtime.driver.active,
        )
        self._binaries[key] = binary
        return binary


class _Parameter(NamedTuple):
    """A parameter of a kernel: a constant, or one on whose value, or on whose pointer's alignment,
    Triton specialises or not."""

    name: str
    constant: bool
    by_value: bool
    by_alignment: bool


def _parameters(kernel: Any) -> tuple[_Parameter, ...]:
    """Those of a kernel; Triton's own are slower to ask."""
    found = _PARAMETERS.get(id(kernel))
    if found is None:
        found = _PARAMETERS[id(kernel)] = tuple(
            [
                _Parameter(
                    param.name,
                    param.is_constexpr,
                    not param.do_not_specialize,
                    not param.do_not_specialize_on_alignment,
                )
                for param in kernel.params
            ]
        )
    return found


def _direct(kernel: Any) -> bool:
    """Whether a launch may leave the JIT out: not under the interpreter, nor where one listens."""
    compiles = isinstance(kernel, triton.JITFunction)
    repeated = compiles and _version(triton.__version__) <= _REPEATED
    return repeated and not kernel.pre_run_hooks and not _hooked()


def _variant(
    parameters: tuple[_Parameter, ...], key: tuple[Any, ...], arguments: Mapping[str, Any]
) -> list[Any]:
    """What Triton compiles a launch of a kernel for, or finer: the tensors by `key` and the form of
    their descriptors, and the class of every scalar."""
    device, odd, *dtypes = key
    aligned = odd and [
        fits or not param.by_alignment for fits, param in zip(odd, parameters, strict=False)
    ]
    found: list[Any] = [device, *dtypes, *(aligned or [True] * len(dtypes))]
    for name, constant, by_value, _ in parameters:
        value = arguments[name]
        kind = type(value)
        if constant:
            found.append((kind, value))
        elif kind is int:
            found.append(_class_of(value, specialized=by_value))
        elif isinstance(value, Tensor):  # `key` tells pointers apart
            found.append(None)
        elif hasattr(value, "block_shape"):
            found.append(_form(value))
        else:  # floats are one class
            found.append(kind if kind is float else (kind, value))
    return found


def _form(descriptor: Any) -> tuple[str, ...]:
    """All that a tensor descriptor holds besides its tensor, its shape and its strides."""
    own = {"base", "shape", "strides"}
    held = [f"{name}={value}" for name, value in vars(descriptor).items() if name not in own]
    return (type(descriptor).__name__, *held)


def _class_of(value: int, *, specialized: bool) -> tuple[Any, ...]:
    """Integers are one class for each width, and where Triton specialises on them, for 1 and for
    multiples of 16 as well."""
    width = value.bit_length() // 32, value < 0
    return (*width, value == 1, value % 16 == 0) if specialized else width


def _moved(descriptor: Any, tensor: Tensor | None) -> Any:
    """The same descriptor of another tensor; the constructor would validate it anew."""
    moved = object.__new__(type(descriptor))
    moved.__dict__.update(descriptor.__dict__)
    moved.base = tensor
    return moved


@functools.cache
def _version(text: str) -> tuple[int, ...]:
    """Major and minor, of Triton."""
    return tuple(int(part) for part in text.split(".")[:2])


def _hooked() -> bool:
    """Whether a profiler, for one, wants to hear of launches."""
    runtime = triton.knobs.runtime
    enter, leave = runtime.launch_enter_hook, runtime.launch_exit_hook
    # A chain of hooks, or in other versions a hook or None.
    return bool(getattr(enter, "calls", enter) or getattr(leave, "calls", leave))
