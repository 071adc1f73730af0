"""Checks and times every Triton kernel on the GPU of this machine; needs torch and Triton alone.

    python3 tests/kernel/gpu_check.py [--quick] [--no-checks] [--no-timing] [--fa4]
    compute-sanitizer --tool memcheck python3 tests/kernel/gpu_check.py --sanitize all

gpu_variants.py times the configurations of the Hopper kernels; sanitize.sh runs the sanitizer.

Checks compare with float64. An attention output passes when its error is at most twice that of an
eager run in the same dtype; buffers start as NaN; a second run must be bitwise equal, and no call
may synchronise with the host. Exits 1 when a check fails.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
import kernel_cases as kc  # noqa: E402

from sp_profile.bench.clock import Clock  # noqa: E402
from sp_runtime.block_index import BlockIndex  # noqa: E402
from sp_runtime.kernels.fa4_launch import shape_obstacle  # noqa: E402
from sp_runtime.kernels.triton_backend import TritonKernels  # noqa: E402

DEVICE = "cuda"
# An eager run of one short float32 row can be right by luck, and twice its error then is no bound:
# errors of 1.6e-6 and 2.3e-6 were seen where the eager error was under 1e-6. The floor is 8 units
# in the last place of a float32 output near 4, a thousandth of the bound in half precision.
FLOOR = 4e-6


def shapes(quick: bool) -> Iterator[kc.Shape]:
    """Few (dtype, head_dim, block) combinations, as each compiles; many lengths, which do not."""
    lengths = ((1, 1), (64, 64), (129, 129), (257, 257), (1000, 1000), (100, 1000), (1, 777))
    lengths += ((1, 129), (300, 684))  # query offsets that are multiples of 128
    lengths += ((300, 400), (5, 700), (129, 258), (640, 1101))  # and offsets that are none
    dims = {"bfloat16": (64, 80, 96, 128, 256), "float16": (64, 128), "float32": (64, 128, 256)}
    for dtype, every in dims.items():
        for block in (64,) if dtype == "float32" else (64, 128):
            for dim in every:
                if quick and dim not in (64, 128):
                    continue
                for q_len, kv_len in lengths:
                    yield kc.Shape(
                        q_len=q_len,
                        kv_len=kv_len,
                        head_dim=dim,
                        heads=6,
                        kv_heads=2,
                        batch=2,
                        block=block,
                        dtype=dtype,
                    )
    for kv_heads in (8, 4, 1):
        size = {"q_len": 600, "kv_len": 728, "heads": 8, "head_dim": 128, "block": 128}
        yield kc.Shape(kv_heads=kv_heads, dtype="bfloat16", **size)


def fa4_shapes(quick: bool) -> Iterator[kc.Shape]:
    """Those of them that FlashAttention-4 takes."""
    for shape in shapes(quick):
        dtype = getattr(torch, shape.dtype)
        aligned = shape.grid.q_offset % shape.block == 0
        if aligned and shape_obstacle(shape.head_dim, shape.block, dtype) is None:
            yield shape


def sanitizer_shapes(kind: str) -> Iterator[kc.Shape]:
    """Every kernel family on few small shapes: a sanitizer slows each launch a hundredfold."""
    for dim, block, dtype in (
        (64, 128, "bfloat16"),
        (128, 128, "float16"),
        (80, 128, "bfloat16"),
        (64, 64, "float16"),
        (64, 64, "float32"),
    ):
        if kind == "hopper" and (block, dim) not in ((128, 64), (128, 128)):
            continue
        for q_len, kv_len in ((1, 1), (257, 257), (100, 333), (300, 428)):
            yield kc.Shape(
                q_len=q_len,
                kv_len=kv_len,
                head_dim=dim,
                heads=4,
                kv_heads=2,
                batch=2,
                block=block,
                dtype=dtype,
            )


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference; NaN anywhere counts as infinite."""
    worst = (found.double() - expected.double()).abs().max().item()
    return worst if worst == worst else float("inf")


def poison() -> None:
    """Make every buffer that is allocated without a fill start as NaN (or a wild integer)."""
    real = torch.empty

    def empty(*size: Any, **options: Any) -> torch.Tensor:
        out = real(*size, **options)
        if out.is_floating_point():
            return out.fill_(float("nan"))
        return out.fill_(0x5A if out.element_size() == 1 else 2**30)

    torch.empty = empty  # type: ignore[assignment]


def guarded(call: Callable[[], Any]) -> Any:
    """The result of a second, bitwise equal run that must not synchronise with the host."""
    first = call()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b), "two runs differ"
    return second


def backends(kind: str) -> dict[str, TritonKernels]:
    """Name -> backend; "pointer" loads K and V by pointer, "portable" by tensor descriptors.

    "usual" are the two that this GPU takes by itself; "fa4" is FlashAttention-4 and nothing else.
    """
    if kind == "fa4":
        from sp_runtime.kernels.fa4_backend import FA4Kernels

        return {"fa4": FA4Kernels()}
    every = {
        "pointer": TritonKernels(capability=(8, 0), hopper=False),
        "portable": TritonKernels(hopper=False),
        "hopper": TritonKernels(),
    }
    if kind == "usual":
        every.pop("pointer")
    return {name: every[name] for name in every if kind in ("all", "usual", name)}


def check(shape: kc.Shape, kind: str = "usual") -> dict[str, tuple[float, float]]:
    """name -> (error, bound) of every operation on one shape."""
    grid, scale = shape.grid, shape.scale
    small = 1e-5 if shape.dtype == "float32" else 2e-3
    q, k, v = kc.inputs(shape, DEVICE)
    results: dict[str, tuple[float, float]] = {}
    variants = backends(kind)
    if not TritonKernels().takes_hopper(q, k, v, grid):
        variants.pop("hopper", None)
    if not variants:
        return results
    kernels = next(iter(variants.values()))

    mask = kc.random_mask(shape, 0.4, DEVICE)
    dense = torch.zeros(shape.batch, shape.heads, dtype=torch.bool, device=DEVICE)
    dense[:, -1] = True
    expected = BlockIndex.from_mask(mask, grid, dense)
    used = int(expected.row_ptr[-1])

    def build() -> tuple[torch.Tensor, torch.Tensor]:
        index = kernels.build_index(mask, grid, dense)
        return index.row_ptr, index.col_idx[:used]  # the rest of the capacity is never written

    row_ptr, col_idx = guarded(build)
    same = torch.equal(row_ptr, expected.row_ptr)
    same = same and torch.equal(col_idx, expected.col_idx[:used])
    results["index"] = (0.0 if same else 1.0, 0.0)
    index = kernels.build_index(mask, grid, dense)

    tokens = kc.token_mask(expected.to_mask(), grid)
    exact, exact_lse = kc.attention64(q, k, v, tokens, scale)
    bound = 2 * gap(kc.eager(q, k, v, tokens, scale), exact) + FLOOR
    for name, backend in variants.items():
        out, lse = guarded(lambda b=backend: b.attention(q, k, v, index, scale=scale))
        results[name] = (gap(out, exact), bound)
        results[f"{name}-lse"] = (gap(lse, exact_lse), small)
        assert out.transpose(1, 2).is_contiguous()

    full = BlockIndex.full(shape.batch, shape.heads, grid, DEVICE)
    every = kc.token_mask(full.to_mask(), grid)
    exact, _ = kc.attention64(q, k, v, every, scale)
    bound = 2 * gap(kc.eager(q, k, v, every, scale), exact) + FLOOR
    for name, backend in variants.items():
        out, dense_lse = backend.attention(q, k, v, full, scale=scale)
        results[f"{name}-dense"] = (gap(out, exact), bound)
    if kind == "hopper":
        results["hopper-mass"] = check_mass(kernels, shape, q, k, dense_lse, 1, small)
        return results

    for name, backend in variants.items():
        results[f"{name}-mass"] = check_mass(backend, shape, q, k, dense_lse, 1, small)
    strides: tuple[int | tuple[int, int, int], ...] = (16, 4, 7, (16, 16, 4))
    for stride in strides if shape.head_dim == 128 else (16,):
        name = f"sampled{stride}" if isinstance(stride, int) else "sampled-mixed"
        results[name] = check_mass(kernels, shape, q, k, dense_lse, stride, small)

    def estimate() -> tuple[torch.Tensor, torch.Tensor]:
        found = kernels.last_block(q, k, grid, scale=scale)
        return found.vertical, found.slash

    vertical, slash = guarded(estimate)
    exact_vertical, exact_slash = kc.last_block64(q, k, grid, scale)
    results["vertical"] = (gap(vertical, exact_vertical), small)
    results["slash"] = (gap(slash, exact_slash), small)
    return results


def check_mass(
    backend: TritonKernels,
    shape: kc.Shape,
    q: torch.Tensor,
    k: torch.Tensor,
    lse: torch.Tensor,
    stride: int | tuple[int, int, int],
    bound: float,
) -> tuple[float, float]:
    """(error, bound) of block mass, or with a stride of sampled mass, with an empty slot."""
    slots = torch.full((shape.batch, 3), -1, dtype=torch.int64, device=DEVICE)
    slots[:, 0], slots[:, 2] = 0, shape.heads - 1

    def mass_of() -> tuple[torch.Tensor]:
        if stride == 1:
            return (backend.block_mass(q, k, lse, slots, shape.grid, scale=shape.scale),)
        return (backend.sampled_mass(q, k, slots, shape.grid, stride=stride, scale=shape.scale),)

    (mass,) = guarded(mass_of)
    wanted = torch.zeros(mass.shape, dtype=torch.float64, device=DEVICE)
    for slot in (0, 2):
        each = stride if isinstance(stride, int) else stride[slot]
        wanted[:, slot] = kc.mass64(q, k, shape.grid, shape.scale, each)[:, slot and -1]
    return gap(mass, wanted), bound


def check_all(every: Iterator[kc.Shape], kind: str = "usual") -> int:
    failures = count = 0
    worst: dict[str, float] = {}
    for shape in every:
        count += 1
        try:
            results = check(shape, kind)
        except Exception as error:  # report the shape and go on: this script surveys
            failures += 1
            print(f"FAIL {shape.label()}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            if "illegal" in str(error) or "misaligned" in str(error):
                raise  # the CUDA context is lost
            continue
        bad = {name: pair for name, pair in results.items() if not pair[0] <= pair[1]}
        for name, (error, bound) in results.items():
            worst[name] = max(worst.get(name, 0.0), error / max(bound, 1e-12))
        if bad:
            failures += 1
            text = ", ".join(f"{n} {e:.3g} > {b:.3g}" for n, (e, b) in bad.items())
            print(f"FAIL {shape.label()}: {text}", flush=True)
    print(f"\n{count - failures} of {count} shapes pass; largest error / bound of each check:")
    print("  " + "  ".join(f"{name} {ratio:.2f}" for name, ratio in worst.items()), flush=True)
    return failures


def timed(call: Callable[[], Any]) -> float:
    """Median milliseconds of the device alone, whatever the host takes to launch."""
    return Clock(torch.device(DEVICE), budget_ms=300).measure(call).times.median_ms


def time_shape(shape: kc.Shape) -> None:
    kernels = TritonKernels()
    grid, scale = shape.grid, shape.scale
    q, k, v = kc.inputs(shape, DEVICE)
    tile = shape.block * shape.block * shape.head_dim
    print(f"\n{shape.label()}   (TFLOP/s count whole blocks, the diagonal included)")

    def line(name: str, ms: float, flop: float | None = None) -> None:
        rate = "" if flop is None else f"{flop / ms / 1e9:9.0f} TFLOP/s"
        print(f"  {name:<34}{ms:10.3f} ms{rate}", flush=True)

    blocks = shape.heads * grid.num_causal_blocks
    sdpa = torch.nn.functional.scaled_dot_product_attention
    for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
        choice = getattr(torch.nn.attention.SDPBackend, backend)
        with torch.nn.attention.sdpa_kernel(choice):
            try:
                ms = timed(lambda: sdpa(q, k, v, is_causal=True, scale=scale, enable_gqa=True))
                line(f"SDPA {backend.lower()}", ms, 4 * tile * blocks)
            except RuntimeError as error:
                print(f"  SDPA {backend.lower()}: {str(error).splitlines()[0][:80]}")

    full = BlockIndex.full(shape.batch, shape.heads, grid, DEVICE)
    variants = {"portable": TritonKernels(hopper=False)}
    if kernels.takes_hopper(q, k, v, grid):
        variants = {"hopper": kernels} | variants
    variants["unsorted"] = TritonKernels(sort_rows=False)
    for name, backend in variants.items():
        ms = timed(lambda b=backend: b.attention(q, k, v, full, scale=scale))
        line(f"attention dense flags {name}", ms, 4 * tile * blocks)
    for density in (1.0, 0.25, 0.05):
        mask = kc.random_mask(shape, density, DEVICE)
        index = kernels.build_index(mask, grid, None)
        listed = int(index.blocks().sum())
        for name, backend in variants.items():
            ms = timed(lambda b=backend, i=index: b.attention(q, k, v, i, scale=scale))
            line(f"attention {density:.0%} {name}", ms, 4 * tile * listed)
    line("build_index", timed(lambda: kernels.build_index(mask, grid, None)))

    _, lse = kernels.attention(q, k, v, full, scale=scale)
    one = torch.zeros(1, 1, dtype=torch.int64, device=DEVICE)
    all_heads = torch.arange(shape.heads, device=DEVICE)[None]
    for name, heads in (("one head", one), ("all heads", all_heads)):
        ms = timed(lambda h=heads: kernels.block_mass(q, k, lse, h, grid, scale=scale))
        line(f"block_mass {name}", ms, 2 * tile * grid.num_causal_blocks * heads.numel())
        ms = timed(lambda h=heads: variants["portable"].block_mass(q, k, lse, h, grid, scale=scale))
        line(f"block_mass {name} portable", ms, 2 * tile * grid.num_causal_blocks * heads.numel())
        for stride in (4, 16):
            ms = timed(
                lambda h=heads, s=stride: kernels.sampled_mass(q, k, h, grid, stride=s, scale=scale)
            )
            line(f"sampled_mass stride {stride} {name}", ms)
    line("last_block", timed(lambda: kernels.last_block(q, k, grid, scale=scale)))


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer shapes")
    parser.add_argument("--no-timing", action="store_true")
    parser.add_argument("--no-checks", action="store_true")
    parser.add_argument("--fa4", action="store_true", help="check FlashAttention-4 as a backend")
    parser.add_argument(
        "--sanitize",
        choices=("all", "pointer", "portable", "hopper"),
        help="these kernels on a few small shapes, no timing",
    )
    options = parser.parse_args()
    print(
        f"{torch.cuda.get_device_name()}  capability {torch.cuda.get_device_capability()}  "
        f"torch {torch.__version__}  triton {triton.__version__}"
    )
    real_empty = torch.empty
    failures = 0
    if not options.no_checks:
        poison()
        if options.sanitize:
            failures = check_all(sanitizer_shapes(options.sanitize), options.sanitize)
        elif options.fa4:
            failures = check_all(fa4_shapes(options.quick), "fa4")
        else:
            failures = check_all(shapes(options.quick))
        torch.empty = real_empty  # type: ignore[assignment]
    if options.sanitize:
        return 1 if failures else 0
    wide = kc.Shape(
        q_len=32768, kv_len=32768, head_dim=128, heads=32, kv_heads=8, block=128, dtype="bfloat16"
    )
    small = replace(wide, head_dim=64, heads=9, kv_heads=3)
    if not options.no_timing:
        for shape in (wide, small, replace(small, block=64)):
            time_shape(shape)
        for shape in (wide, small):
            time_shape(replace(shape, q_len=131072, kv_len=131072))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
