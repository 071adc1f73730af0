"""Checks that a program starts what Triton's JIT would start; prints one JSON line a check.

Every launch of three layers is made three times: through the JIT, with what other programs have had
compiled, and with the binary that a program has kept; on Triton's real binder with fake kernels,
see fake_gpu.py. No GPU.
"""

from __future__ import annotations

import json
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
import engine_cases  # noqa: E402
import fake_gpu  # noqa: E402

from sp_runtime.kernels import program as programs  # noqa: E402
from sp_runtime.kernels.program import Program  # noqa: E402
from sp_runtime.kernels.triton_backend import TritonKernels  # noqa: E402

METHODS = ("vertical_slash", "sampled", "plan", "plan:drift")
STARTED: list[tuple[fake_gpu.FakeKernel, tuple[Any, ...]]] = []
# Of what `run` takes: before the arguments of the kernel come three of the hooks.
HOOKS = slice(6, 9)


@triton.jit(do_not_specialize=["count"])
def small_kernel(x_ptr, y_ptr, count, scale, W: tl.constexpr):
    tl.store(y_ptr + tl.arange(0, W), tl.load(x_ptr + count) * scale)


def report(name: str, passed: bool) -> None:
    print(json.dumps({"check": name, "passed": bool(passed)}), flush=True)


def plain(value: Any) -> Any:
    """A tensor or a pointer as a number, a descriptor as all that it holds."""
    if isinstance(value, Tensor):
        return value.data_ptr()
    if hasattr(value, "block_shape"):
        return type(value), *[plain(each) for each in vars(value).values()]
    return value


def last() -> tuple[fake_gpu.FakeKernel, list[Any]]:
    kernel, arguments = STARTED[-1]
    return kernel, [plain(each) for i, each in enumerate(arguments) if i not in range(6, 9)]


def check_layers(hopper: bool, length: int) -> None:
    """Each launch of a forward through the JIT and directly: the same kernel and arguments."""
    start = Program.__call__
    seen: dict[str, bool] = {}

    def thrice(program: Program, **tensors: Tensor) -> None:
        others = dict(programs._COMPILED)
        programs._COMPILED.clear()
        program._binaries.clear()
        start(program, **tensors)
        through_jit = last()
        # What other programs have had compiled comes before what this one has.
        programs._COMPILED.update(others)
        program._binaries.clear()
        number = len(STARTED)
        with unreachable_jit():
            start(program, **tensors)
            same = len(STARTED) == number + 1 and last() == through_jit
            start(program, **tensors)
        name = program.kernel.__name__
        same = same and len(STARTED) == number + 2 and last() == through_jit
        seen[name] = seen.get(name, True) and same

    Program.__call__ = thrice  # type: ignore[method-assign]
    try:
        for method in METHODS:
            kernels = TritonKernels(capability=(9, 0), hopper=hopper)
            engine = engine_cases.make_engine(method, heads=6, block=128, kernels=kernels)
            q = torch.zeros(3, 1, 6, length - 100, 64, dtype=torch.bfloat16)
            k = torch.zeros(3, 1, 2, length, 64, dtype=torch.bfloat16)
            engine_cases.forward(engine, q, k, k)
    finally:
        Program.__call__ = start  # type: ignore[method-assign]
    for name, same in seen.items():
        report(f"{name} at {length}{', hopper' if hopper else ''}", same)


def check_new_lengths() -> None:
    """A prompt of a length that nobody has had reaches the JIT for nothing."""
    for method in METHODS:
        for hopper in (True, False):
            kernels = TritonKernels(capability=(9, 0), hopper=hopper)
            engine = engine_cases.make_engine(method, heads=6, block=128, kernels=kernels)
            for length in (1501, 1664, 2333):
                q = torch.zeros(3, 1, 6, length, 64, dtype=torch.bfloat16)
                k = torch.zeros(3, 1, 2, length, 64, dtype=torch.bfloat16)
                if length == 1501:
                    engine_cases.forward(engine, q, k, k)
                    continue
                number = len(STARTED)
                with unreachable_jit():
                    engine_cases.forward(engine, q, k, k)
                started = len(STARTED) > number
                report(f"{method} at {length}{', hopper' if hopper else ''}", started)


def check_classes() -> None:
    """Scalars that Triton compiles anew for get kernels of their own, others do not."""
    x = torch.zeros(64)
    found: dict[tuple[Any, ...], fake_gpu.FakeKernel] = {}
    edges = (1, 16, 7, 2**31 - 1, 2**31, 2**31 + 16, 2**32, 2**40, -1, -(2**31), 2**63)
    numbers = (0.5, 0.25, 1, 2, 3, 15, 16, 2**31, 2**31 - 1, 2**33 + 1, -16, -3, True)
    for count, scale, size in (
        *((count, 0.5, 16) for count in edges),
        *((1, scale, 16) for scale in numbers),
        (1, 0.5, 32),
    ):
        Program(small_kernel, (1,), count=count, scale=scale, W=size)(x_ptr=x, y_ptr=x)
        found[count, scale, size] = last()[0]
        small_kernel[(1,)](
            x, x, count, scale, W=size, num_warps=4, num_stages=1, enable_fp_fusion=True
        )
        report(f"the kernel of {count}, {scale}, {size}", last()[0] is found[count, scale, size])
    report("lengths share a kernel", found[1, 0.5, 16] is found[7, 0.5, 16])


class unreachable_jit:
    """Inside, nothing gets to Triton's JIT."""

    def __enter__(self) -> None:
        self._run = triton.JITFunction.run
        triton.JITFunction.run = None

    def __exit__(self, *_: object) -> None:
        triton.JITFunction.run = self._run


def check_variants() -> None:
    """Tensors of another dtype or alignment get another binary, and the first keep theirs."""
    program = Program(small_kernel, (1,), count=1, scale=0.5, W=16)
    memory = torch.zeros(64)
    out = torch.zeros(64)
    tensors = {
        "aligned": memory[:16],
        "unaligned": memory[1:17],
        "half": memory.half(),
        "bytes": memory.to(torch.uint8),
    }
    found: dict[str, fake_gpu.FakeKernel] = {}
    for name, tensor in tensors.items():
        program(x_ptr=tensor, y_ptr=out)
        found[name] = last()[0]
    program(x_ptr=memory[16:32], y_ptr=out[1:])
    report("every class has a binary", len({*found.values(), last()[0]}) == len(tensors) + 1)
    with unreachable_jit():
        for name, tensor in reversed(tensors.items()):
            program(x_ptr=tensor, y_ptr=out)
            kernel, arguments = last()
            own = kernel is found[name] and arguments[6] == tensor.data_ptr()
            report(f"{name} keeps its binary", own)
    program(x_ptr=memory > 0, y_ptr=out)
    report("a mask is bytes", last()[0] is found["bytes"])


def check_hooks() -> None:
    """A launch hook hears of launches that have a binary too, and of none once it is gone."""
    program = Program(small_kernel, (1,), count=1, scale=0.5, W=16)
    x = torch.zeros(64)
    program(x_ptr=x, y_ptr=x)
    program(x_ptr=x, y_ptr=x)
    report("no hook, none called", STARTED[-1][1][HOOKS] == (None, None, None))
    runtime = triton.knobs.runtime
    chain = runtime.launch_enter_hook

    def hook(*_: Any) -> None: ...

    chain.add(hook)
    program(x_ptr=x, y_ptr=x)
    report("a hook is called", STARTED[-1][1][HOOKS][1] is chain)
    chain.remove(hook)
    program(x_ptr=x, y_ptr=x)
    report("and no more", STARTED[-1][1][HOOKS] == (None, None, None))


def check_memory() -> None:
    """No tensor of a call outlives it, neither by a pointer nor by a descriptor."""

    def describe(tensor: Tensor) -> TensorDescriptor:
        return TensorDescriptor(tensor, [64], [1], [16])

    program = Program(small_kernel, (1,), described={"x_ptr": describe}, count=1, scale=0.5, W=16)
    for call in ("first", "second"):
        x, y = torch.zeros(64), torch.zeros(64)
        held = weakref.ref(x), weakref.ref(y)
        program(x_ptr=x, y_ptr=y)
        STARTED.clear()
        del x, y
        report(f"the {call} call keeps nothing", held[0]() is None and held[1]() is None)


def check_versions() -> None:
    """A Triton that nobody has read starts everything itself."""
    program = Program(small_kernel, (1,), count=1, scale=0.5, W=16)
    x = torch.zeros(64)
    version = triton.__version__
    try:
        triton.__version__ = "3.10.0+git1"
        for call in ("first", "second"):
            program(x_ptr=x, y_ptr=x)
            through_jit = STARTED[-1][1][HOOKS] != (None, None, None)
            report(f"the {call} call goes through a later JIT", through_jit)
    finally:
        triton.__version__ = version


def main() -> None:
    torch.set_num_threads(1)
    fake_gpu.install(STARTED)
    check_variants()
    check_classes()
    check_new_lengths()
    check_hooks()
    check_memory()
    check_versions()
    for length in (701, 1024):
        check_layers(hopper=True, length=length)
    check_layers(hopper=False, length=701)


if __name__ == "__main__":
    main()
