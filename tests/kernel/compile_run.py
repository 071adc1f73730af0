"""Compiles the kernels for one architecture without a GPU and prints one JSON line a kernel.

    python tests/kernel/compile_run.py sm90 128 [--pointers | --float | --hopper |
                                        --candidates] [--cold]

The launches are those of the backend itself: it runs on small CPU tensors with the launch recorded
instead of made, so that the gate compiles what production compiles.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler
from triton.compiler import ASTSource
from triton.experimental.gluon._runtime import GluonASTSource

sys.path.insert(0, str(Path(__file__).parent))
import kernel_cases as kc

from sp_runtime.block_index import BlockGrid, BlockIndex
from sp_runtime.kernels import triton_backend, tuning
from sp_runtime.kernels.base import Borrowing, ClusterSlots, LastBlockEstimate, Pivots
from sp_runtime.kernels.program import Program

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


def record_launches() -> list[tuple[Any, Any, dict]]:
    """A list that takes (kernel, config, arguments) of every launch from now on, in its place."""
    launches: list[tuple[Any, Any, dict]] = []

    def start(program: Program, **tensors: torch.Tensor) -> None:
        launches.append((program.kernel, program.config, program.arguments(tensors)))

    Program.__call__ = start  # type: ignore[method-assign]
    return launches


def record(arch: str, shape: kc.Shape, pointers: bool, every: bool) -> list[tuple[Any, Any, dict]]:
    """(kernel, config, arguments) of each launch of the backend for a call of this shape."""
    launches = record_launches()
    kernels = triton_backend.TritonKernels(capability=capability(arch), hopper=False)
    q, k, v = kc.inputs(shape, "cpu")
    if pointers:  # stay divisible by 16 elements, but at an address no descriptor takes
        triton_backend.addressable = lambda layout: False  # type: ignore
    grid, scale = shape.grid, shape.scale
    lse = torch.zeros(q.shape[:3])
    heads = torch.zeros(shape.batch, 1, dtype=torch.int64)
    full = BlockIndex.full(shape.batch, shape.heads, grid, "cpu")
    kernels.attention(q, k, v, full, scale=scale)
    if shape.head_dim in (80, 96):
        return launches
    kernels.last_block(q, k, grid, scale=scale)
    kernels.block_mass(q, k, lse, heads, grid, scale=scale)
    kernels.sampled_mass(q, k, heads, grid, stride=16, scale=scale)
    pooled(kernels, q, k, grid, every)
    if every:  # and the small kernels
        kernels.build_index(full.to_mask(), grid, None)
        if shape.dtype != "float32" and arch != "sm89":  # nothing in them differs from sm80
            select(kernels, grid, lse)
        return launches
    return [launch for launch in launches if launch[1] is not None]


def pooled(
    kernels: triton_backend.TritonKernels,
    q: torch.Tensor,
    k: torch.Tensor,
    grid: BlockGrid,
    every: bool,
) -> None:
    """The kernels of the query-aware choice, with `every` in each of their compiled forms."""
    for heads in (torch.arange(q.shape[1]), None)[: 1 + every]:
        means = kernels.pool(q, k, grid, heads=heads)
        kernels.pooled_row(means, grid, scale=1.0)
        mask = kernels.query_aware(means, grid, gamma=0.9, scale=1.0)
        if not every:
            continue
        level = torch.ones(q.shape[:2])
        kernels.query_aware(means, grid, gamma=level, scale=1.0, onto=mask)
        kernels.query_aware(means, grid, gamma=level, scale=1.0, onto=mask, slots=heads)


def select(kernels: triton_backend.TritonKernels, grid: BlockGrid, lse: torch.Tensor) -> None:
    """Every selection kernel, in each of its compiled forms."""
    lead = lse.shape[:2]
    mass = torch.zeros(*lead, grid.num_rows, grid.num_cols)
    tokens = torch.zeros(*lead, grid.kv_len)
    estimate = LastBlockEstimate(vertical=tokens, slash=tokens)
    budget = {"min_budget": 1, "max_budget": None}
    kernels.vertical_slash(estimate, grid, gamma=0.9, slash_cover="both", **budget)
    kernels.vertical_slash(estimate, grid, gamma=lse[..., 0], slash_cover="one", **budget)
    kernels.gamma_mask(mass, 0.9)
    mask, number = mass > 0, torch.arange(lead[1])
    kernels.gamma_mask(mass, 0.9, local_blocks=1)
    kernels.gamma_mask(mass, lse[..., 0], local_blocks=1, out=mask, slots=number)
    kernels.gamma_mask(mass, 0.9, row_slack=2.0, local_blocks=1)
    kernels.gamma_mask(mass, lse[..., 0], row_slack=2.0, local_blocks=1, out=mask, slots=number)
    kernels.build_index(mask, grid, None, slots=number.expand(lead))
    flags, number = lse[..., 0] > 0, torch.zeros(lead[1], dtype=torch.int64)
    slots = ClusterSlots(
        cluster=number[:1], member=flags[:1], slot=number, head_cluster=number, clustered=flags[0]
    )
    rows = mass[:, :, 0]
    kernels.close_rows(rows, None, None, limit=0.3)
    kernels.close_rows(rows, rows, number, limit=0.3)
    roles = kernels.share_roles(
        flags,
        flags,
        flags[:, :1],
        slots,
        branch=flags.to(torch.uint8),
        cost=lse[..., 0],
        pivot_cost=1.0,
        shared_branch=2,
        pivot_branch=1,
    )
    borrowing = Borrowing(
        borrows=flags[0], row=number, slots=number, own=number, gamma=lse[0, :, 0],
        fallback=lse[0, :, 0], branch=flags[0].to(torch.uint8),
    )  # fmt: skip
    borrowed = kernels.borrow_roles(
        rows, rows, borrowing, near=0.1, far=0.2, widened_branch=14, fallback_branch=3
    )
    kernels.unite(mask, borrowed.slots, borrowed.onto)
    kernels.lend(mask, flags, mask, number, None)
    kernels.lend(mask, flags, mask, number, mask)
    state = Pivots(known=flags, mask=mask, vertical=rows, slash=rows, covered=lse[..., 0])
    sums = torch.stack([rows, rows])
    kernels.keep_pivots(
        state, roles.heads, number[:1], pattern=mask[:, :1], sums=sums, covered=lse[..., 0]
    )


def record_hopper(shape: kc.Shape, pinned: dict[Any, Any]) -> list[tuple[Any, None, dict]]:
    """The launches of the Hopper kernels, attention and block mass, for a call of this shape."""
    from sp_runtime.kernels import hopper_launch

    launches = record_launches()
    hopper_launch.multiprocessors = lambda device: 132  # type: ignore
    q, k, v = kc.inputs(shape, "cpu")
    full = BlockIndex.full(shape.batch, shape.heads, shape.grid, "cpu")
    kernels = triton_backend.TritonKernels(capability=(9, 0), sort_rows=False, pinned=pinned)
    _, lse = kernels.attention(q, k, v, full, scale=shape.scale)
    heads = torch.zeros(shape.batch, 1, dtype=torch.int64)
    kernels.block_mass(q, k, lse, heads, shape.grid, scale=shape.scale)
    return launches


def hopper_configs(dim: int, every: bool) -> Iterator[dict[Any, Any]]:
    """What to pin: the table's configurations, or one candidate of each kernel after the other."""
    attention = tuning.candidates("hopper", (9, 0), dim, 128, "half")
    mass = tuning.candidates("hopper_mass", (9, 0), dim, 128, "half")
    for a, m in zip_longest(attention, mass, fillvalue=None) if every else [(None, None)]:
        yield {"hopper": a or attention[0], "hopper_mass": m or mass[0]}


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
    seconds = round(time.perf_counter() - started, 1)
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
    line = {
        "registers": int(found[1]),
        "threads": built.metadata.num_warps * 32,
        # A stack frame without spilled bytes is no spill; only a frame makes asking worthwhile.
        "spilled": spilled_bytes(built.asm["ptx"], arch) if stack else 0,
        "shared": built.metadata.shared,
        "limit": LIMITS[arch],
        "seconds": seconds,
    }
    if kernel.is_gluon():
        line["serialised"] = "wgmma.mma_async instructions are serialized" in assembled(
            built.asm["ptx"], arch
        )
        line |= exponentials(built.asm["cubin"])
    return line


def exponentials(cubin: bytes) -> dict[str, int]:
    """Where the exponentials stand in the machine code of a warp-specialised kernel.

    exp2: how many there are. inside: those between the start of an asynchronous product and the
    wait for all products, which therefore run during it. widest: most threads that one named
    barrier joins, the CTA-wide ones that open and close the partitions left out.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        code = subprocess.run(
            [triton.knobs.nvidia.nvdisasm.path, "-c", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    total = inside = waiting = widest = 0
    running = False
    for text in code.splitlines():
        if "MUFU.EX2" in text:
            total += 1
            waiting += running
        elif "HGMMA" in text:
            running = True
        elif "WARPGROUP.DEPBAR" in text and "gsb0, 0x0" in text:
            inside += waiting
            waiting, running = 0, False
        elif joined := re.search(r"BAR\.SYNC\S* 0x\w+, 0x(\w+)", text):
            widest = max(widest, int(joined[1], 16))
    return {"exp2": total, "inside": inside, "widest": widest}


def spilled_bytes(ptx: str, arch: str) -> int:
    """Bytes of registers that ptxas spills, by its own account."""
    found = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", assembled(ptx, arch))
    assert found
    return int(found[1]) + int(found[2])


def assembled(ptx: str, arch: str) -> str:
    """What ptxas says of a kernel, called as Triton calls it."""
    target = arch.replace("sm", "sm_") + ("a" if arch == "sm90" else "")
    # Newer versions of Triton pass this one, which changes what spills.
    extra = ["--regAllocOptLevel=2"] if "regAllocOptLevel" in inspect.getsource(compiler) else []
    with tempfile.NamedTemporaryFile(mode="w", suffix=".ptx") as file:
        file.write(ptx)
        file.flush()
        said = subprocess.run(
            [
                ptxas(arch),
                "--verbose",
                *extra,
                f"--gpu-name={target}",
                file.name,
                "-o",
                "/dev/null",
            ],
            capture_output=True,
            text=True,
            check=True,
        ).stderr
    return said


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
    kind.add_argument("--hopper", action="store_true", help="the Hopper kernels alone")
    kind.add_argument("--candidates", action="store_true", help="the same, worth timing")
    parser.add_argument("--cold", action="store_true", help="with an empty compilation cache")
    options = parser.parse_args()
    if options.cold:
        triton.knobs.cache.dir = tempfile.mkdtemp(prefix="sp-compile-")
    spent: list[float] = []

    def report(shape: kc.Shape, launch: tuple[Any, Any, dict]) -> None:
        kernel, config, args = launch
        line: dict[str, Any] = {
            "arch": options.arch,
            "kernel": kernel.__name__,
            "shape": f"d{shape.head_dim}-block{shape.block}-{shape.dtype}",
        }
        line |= compile_one(options.arch, kernel, config, args)
        spent.append(line["seconds"])
        print(json.dumps(line), flush=True)

    for dim in options.dims:
        if options.hopper or options.candidates:
            for dtype in ("bfloat16",) if options.candidates else ("bfloat16", "float16"):
                shape = kc.Shape(q_len=256, kv_len=256, head_dim=dim, block=128, dtype=dtype)
                for pinned in hopper_configs(dim, options.candidates):
                    for launch in record_hopper(shape, pinned):
                        report(shape, launch)
            continue
        for shape, every in shapes(dim, "float32" if options.float else "bfloat16"):
            if options.pointers and (shape.block == 64 or shape.head_dim != dim):
                continue
            every = every and not options.pointers
            for launch in record(options.arch, shape, options.pointers, every):
                report(shape, launch)
    print(f"{len(spent)} kernels compiled in {sum(spent):.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
