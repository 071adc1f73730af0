"""Compiles the kernels for one architecture without a GPU and prints one JSON line a kernel.

    python tests/kernel/compile_run.py sm90 128 [--pointers | --float | --hopper]

The launches are those of the backend itself: it runs on small CPU tensors with the launch recorded
instead of made, so that the gate compiles what production compiles.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

sys.path.insert(0, str(Path(__file__).parent))
import kernel_cases as kc

from sp_runtime.block_index import BlockIndex
from sp_runtime.kernels import triton_backend

# Most dynamic shared memory of a block, in bytes. Every 8.x runs the configurations of 8.0.
LIMITS = {"sm80": 99 << 10, "sm89": 99 << 10, "sm90": 227 << 10, "sm100": 227 << 10}
TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
}


def capability(arch: str) -> tuple[int, int]:
    return int(arch[2:-1]), int(arch[-1])


def record(arch: str, shape: kc.Shape, pointers: bool, every: bool) -> list[tuple[Any, Any, dict]]:
    """(kernel, config, arguments) of each launch of the backend for a call of this shape."""
    launches: list[tuple[Any, Any, dict]] = []
    triton_backend.launch = lambda kernel, grid, config, **args: launches.append(  # type: ignore
        (kernel, config, args)
    )
    triton_backend.on_device = lambda tensor: contextlib.nullcontext()  # type: ignore
    kernels = triton_backend.TritonKernels(capability=capability(arch), hopper=False)
    q, k, v = kc.inputs(shape, "cpu")
    if pointers:  # stay divisible by 16 elements, but at an address no descriptor takes
        triton_backend.addressable = lambda tensor: False  # type: ignore
    grid, scale = shape.grid, shape.scale
    lse = torch.zeros(q.shape[:3])
    heads = torch.zeros(shape.batch, 1, dtype=torch.int64)
    full = BlockIndex.full(shape.batch, shape.heads, grid, "cpu")
    kernels.attention(q, k, v, full, scale=scale)
    if shape.head_dim in (80, 96):
        return launches
    kernels.last_block(q, k, grid, scale=scale)
    kernels.block_mass(q, k, lse, heads, grid, scale=scale)
    if every:  # the same configurations with query sampling, and the small kernels
        kernels.sampled_mass(q, k, heads, grid, stride=16, scale=scale)
        kernels.build_index(full.to_mask(), grid, None)
        return launches
    return [launch for launch in launches if launch[1] is not None]


def record_hopper(shape: kc.Shape) -> tuple[Any, None, dict]:
    """The one launch of the Hopper kernel for a call of this shape."""
    from sp_runtime.kernels import hopper_launch, launch

    launches: list[tuple[Any, None, dict]] = []
    launch.launch = lambda kernel, grid, config, **args: launches.append(  # type: ignore
        (kernel, config, args)
    )
    triton_backend.on_device = lambda tensor: contextlib.nullcontext()  # type: ignore
    hopper_launch.multiprocessors = lambda tensor: 132  # type: ignore
    q, k, v = kc.inputs(shape, "cpu")
    full = BlockIndex.full(shape.batch, shape.heads, shape.grid, "cpu")
    kernels = triton_backend.TritonKernels(capability=(9, 0))
    kernels.attention(q, k, v, full, scale=shape.scale)
    (only,) = launches
    return only


def source(kernel: Any, args: dict[str, Any]) -> ASTSource:
    """What Triton's launcher would compile for these arguments."""
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list] = {}
    for i, param in enumerate(kernel.params):
        value = args[param.name]
        divisible = False
        if param.is_constexpr or (
            isinstance(value, int) and value == 1 and not param.do_not_specialize
        ):
            signature[param.name] = "constexpr"
            constants[param.name] = value
        elif hasattr(value, "block_shape"):  # a tensor descriptor, with its layout if Gluon's
            block = ", ".join(map(str, value.block_shape))
            layout = f",{value.layout!r}" if kernel.is_gluon() else ""
            signature[param.name] = f"tensordesc<{TYPES[value.base.dtype]}[{block}]{layout}>"
        elif isinstance(value, torch.Tensor):
            signature[param.name] = f"*{TYPES[value.dtype]}"
            divisible = value.data_ptr() % 16 == 0
        elif isinstance(value, int):
            signature[param.name] = "i32"
            divisible = value % 16 == 0 and not param.do_not_specialize
        else:
            signature[param.name] = "fp32"
        if divisible:
            attributes[(i,)] = [["tt.divisibility", 16]]
    kind = GluonASTSource if kernel.is_gluon() else ASTSource
    return kind(kernel, signature, constants, attributes)


def compile_one(arch: str, kernel: Any, config: Any, args: dict[str, Any]) -> dict[str, Any]:
    started = time.perf_counter()
    built = triton.compile(
        source(kernel, args),
        target=GPUTarget("cuda", int(arch[2:]), 32),
        options={
            "num_warps": 4 if config is None else config.num_warps,
            "num_stages": 1 if config is None else config.num_stages,
            "enable_fp_fusion": True,
        },
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(built.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    stack = int(found[2])
    return {
        "registers": int(found[1]),
        "threads": built.metadata.num_warps * 32,
        # A stack frame without spilled bytes is no spill; only a frame makes asking worthwhile.
        "spilled": spilled_bytes(built.asm["ptx"], arch) if stack else 0,
        "shared": built.metadata.shared,
        "limit": LIMITS[arch],
        "seconds": round(time.perf_counter() - started, 1),
    }


def spilled_bytes(ptx: str, arch: str) -> int:
    """Bytes of registers that ptxas spills, by its own account."""
    target = arch.replace("sm", "sm_") + ("a" if arch == "sm90" else "")
    with tempfile.NamedTemporaryFile(mode="w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        said = subprocess.run(
            [ptxas(arch), "--verbose", f"--gpu-name={target}", file.name, "-o", "/dev/null"],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    found = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", said)
    assert found, said
    return int(found[1]) + int(found[2])


def ptxas(arch: str) -> str:
    """The assembler that Triton itself takes for this architecture."""
    from triton.backends.nvidia.compiler import get_ptxas

    return str(get_ptxas(int(arch[2:])).path)


def shapes(dim: int, dtype: str) -> Iterator[tuple[kc.Shape, bool]]:
    """Each call shape, and whether to compile the kernels that share its configurations too."""
    # Float32 tiles are smaller than either block size and take the same code for both.
    for block in (64,) if dtype == "float32" else (64, 128):
        size = {"q_len": 2 * block, "kv_len": 2 * block, "block": block, "dtype": dtype}
        every = dim == 128 and (block == 128 or dtype == "float32")
        yield kc.Shape(head_dim=dim, **size), every
    if dim == 128 and dtype != "float32":
        yield kc.Shape(head_dim=80, **size), False


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("arch", choices=LIMITS)
    parser.add_argument("dims", type=int, nargs="+")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--pointers", action="store_true")
    kind.add_argument("--float", action="store_true")
    kind.add_argument("--hopper", action="store_true", help="the Hopper kernel alone")
    options = parser.parse_args()

    def report(shape: kc.Shape, launch: tuple[Any, Any, dict]) -> None:
        kernel, config, args = launch
        sampled = args.get("SAMPLED") or args.get("PER_ROW", shape.block) != shape.block
        line: dict[str, Any] = {
            "arch": options.arch,
            "kernel": kernel.__name__ + ("-sampled" if sampled else ""),
            "shape": f"d{shape.head_dim}-block{shape.block}-{shape.dtype}",
        }
        print(json.dumps(line | compile_one(options.arch, kernel, config, args)), flush=True)

    for dim in options.dims:
        if options.hopper:
            for dtype in ("bfloat16", "float16"):
                shape = kc.Shape(q_len=256, kv_len=256, head_dim=dim, block=128, dtype=dtype)
                report(shape, record_hopper(shape))
            continue
        for shape, every in shapes(dim, "float32" if options.float else "bfloat16"):
            if options.pointers and (shape.block == 64 or shape.head_dim != dim):
                continue
            every = every and not options.pointers
            for launch in record(options.arch, shape, options.pointers, every):
                report(shape, launch)


if __name__ == "__main__":
    main()
