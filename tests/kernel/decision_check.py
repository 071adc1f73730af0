"""Checks and times what surrounds the attention kernel, on the GPU; needs torch and Triton alone.

    python3 tests/kernel/decision_check.py --out DIR [--quick] [--no-timing] [--no-checks] [--sweep]
    compute-sanitizer --tool memcheck python3 tests/kernel/decision_check.py --sanitize

Checks first: the last-block estimate against float64 and every selection kernel against its torch
definition, with poisoned buffers; layers captured in a CUDA graph against eager ones on new inputs;
and the variants compiled over 50 prompt lengths. Then the time of each launch of a layer's
decision, and their sum as a share of an attention at density 10 %. Writes DIR/decision.json and
exits 1 when a check fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
import kernel_cases as kc  # noqa: E402
import selection_cases as sc  # noqa: E402
from decision_times import host_time, sweep, time_parts  # noqa: E402
from engine_cases import LAYERS, POINTS, forward, make_engine  # noqa: E402
from gpu_check import DEVICE, gap, poison  # noqa: E402

from sp_runtime.kernels.triton_backend import TritonKernels  # noqa: E402

ESTIMATE_SHAPES = (
    kc.Shape(q_len=1, kv_len=1, dtype="bfloat16"),
    kc.Shape(q_len=257, kv_len=257, heads=4, kv_heads=2, batch=2, dtype="bfloat16"),
    kc.Shape(q_len=100, kv_len=1111, block=128, heads=4, kv_heads=1, batch=2, dtype="float16"),
    kc.Shape(q_len=1000, kv_len=4444, block=128, head_dim=128, heads=6, kv_heads=2,
             dtype="bfloat16"),
    kc.Shape(q_len=300, kv_len=684, block=128, head_dim=80, dtype="bfloat16"),
    kc.Shape(q_len=200, kv_len=333, head_dim=256, dtype="bfloat16"),
    kc.Shape(q_len=150, kv_len=290, block=128, head_dim=128, dtype="float32"),
)  # fmt: skip


def check_estimates() -> Iterator[tuple[str, str, bool]]:
    """(check, shape, passed): vertical, slash and their block sums against float64."""
    for shape in ESTIMATE_SHAPES:
        q, k, _ = kc.inputs(shape, DEVICE)
        found = TritonKernels().last_block(q, k, shape.grid, scale=shape.scale)
        again = TritonKernels().last_block(q, k, shape.grid, scale=shape.scale)
        exact = kc.last_block64(q, k, shape.grid, shape.scale)
        bound = 1e-5 if shape.dtype == "float32" else 2e-3
        assert found.sums is not None
        assert again.sums is not None
        for i, (name, part) in enumerate((("vertical", found.vertical), ("slash", found.slash))):
            yield name, shape.label(), gap(part, exact[i]) <= bound
            summed = replace(found, sums=None).block_sums(shape.grid)[i]
            yield f"{name}-sums", shape.label(), gap(found.sums[i], summed) <= 1e-6
        repeated = torch.equal(found.sums, again.sums) and torch.equal(found.slash, again.slash)
        yield "estimate-repeats", shape.label(), repeated


def check_selections(cases: tuple[sc.Case, ...]) -> Iterator[tuple[str, str, bool]]:
    for case in cases:
        for name, passed in sc.check_selection(TritonKernels(), case, DEVICE):
            yield name, case.label(), passed


def check_graphs(shape: kc.Shape) -> Iterator[tuple[str, str, bool]]:
    """A captured forward replayed on other inputs equals an eager one on them, bit for bit."""
    for name in POINTS:
        engine = make_engine(name, heads=shape.heads, block=shape.block)
        static = kc.layer_inputs(shape, LAYERS, DEVICE, seed=0)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            forward(engine, *static)  # compiles, and uploads the tables of the method
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = forward(engine, *static)
        for seed in (100, 200):
            fresh = kc.layer_inputs(shape, LAYERS, DEVICE, seed=seed)
            for kept, new in zip(static, fresh, strict=True):
                kept.copy_(new)
            graph.replay()
            eager = forward(make_engine(name, heads=shape.heads, block=shape.block), *fresh)
            same = all(torch.equal(a, b) for a, b in zip(outputs, eager, strict=True))
            yield f"graph {name}", shape.label(), same


def compiled_variants() -> dict[str, int]:
    """Variants of every kernel that has been compiled on this device."""
    from triton.runtime.jit import JITFunction

    found: dict[str, int] = {}
    for name, module in list(sys.modules.items()):
        if not name.startswith("sp_runtime.kernels."):
            continue
        for kernel in vars(module).values():
            if isinstance(kernel, JITFunction):
                cache = kernel.device_caches[torch.cuda.current_device()][0]
                if cache:
                    found[kernel.__name__] = len(cache)
    return found


def check_lengths(count: int = 50) -> Iterator[tuple[str, str, bool]]:
    """No prompt length compiles anything that the first one has not."""
    gen = torch.Generator().manual_seed(0)
    drawn = torch.randint(1_000, 9_000, (count - 3,), generator=gen).tolist()
    lengths = [*drawn, 4_096, 1_024, 8_191]
    first: dict[str, int] = {}
    for length in lengths:
        shape = kc.Shape(
            q_len=length, kv_len=length, heads=6, kv_heads=2, block=128, dtype="bfloat16"
        )
        inputs = kc.layer_inputs(shape, LAYERS, DEVICE, seed=0)
        for name in POINTS:
            forward(make_engine(name, heads=6, block=128), *inputs)
        if not first:
            first = compiled_variants()
    last = compiled_variants()
    print(f"  compiled variants after 1 and {len(lengths)} lengths:")
    for name, number in sorted(last.items()):
        print(f"    {name:<24}{first.get(name, 0):>4}{number:>4}")
        yield f"variants {name}", f"{len(lengths)} lengths", first.get(name) == number


def sanitize() -> int:
    """How many of the selection kernels' checks on small shapes fail; nothing else."""
    poison()
    results = list(check_selections(sc.SMALL))
    failed = [f"{name} {label}" for name, label, passed in results if not passed]
    print(f"{len(results) - len(failed)} of {len(results)} checks pass", *failed, sep="\n")
    return len(failed)


def run_checks(quick: bool) -> tuple[dict[str, list[int]], list[str]]:
    """(passed and total of each check, the failures by name and shape)."""
    tally: dict[str, list[int]] = {}
    bad: Counter[str] = Counter()
    real_empty = torch.empty
    poison()
    sources = [
        check_estimates(),
        check_selections(sc.SMALL if quick else sc.SMALL + sc.LARGE),
    ]
    try:
        for source in sources:
            for name, label, passed in source:
                counts = tally.setdefault(name, [0, 0])
                counts[0] += passed
                counts[1] += 1
                bad[f"{name} {label}"] += not passed
    finally:
        torch.empty = real_empty  # type: ignore[assignment]
    small = kc.Shape(q_len=1500, kv_len=1500, heads=6, kv_heads=2, block=128, dtype="bfloat16")
    for source in (
        check_graphs(small),
        check_graphs(replace(small, q_len=700, head_dim=128, block=64, batch=2)),
        check_lengths(),
    ):
        for name, label, passed in source:
            counts = tally.setdefault(name, [0, 0])
            counts[0] += passed
            counts[1] += 1
            bad[f"{name} {label}"] += not passed
    return tally, [text for text, number in bad.items() if number]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="folder for decision.json")
    parser.add_argument("--quick", action="store_true", help="small shapes alone")
    parser.add_argument("--no-timing", action="store_true")
    parser.add_argument("--no-checks", action="store_true")
    parser.add_argument("--sweep", action="store_true", help="time other configurations (sm_90)")
    parser.add_argument("--sanitize", action="store_true", help="selection on small shapes alone")
    options = parser.parse_args()
    if options.sanitize:
        return 1 if sanitize() else 0
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
    }
    print("  ".join(map(str, result.values())), flush=True)
    failures: list[str] = []
    if not options.no_checks:
        started = time.perf_counter()
        tally, failures = run_checks(options.quick)
        result["checks"], result["failures"] = tally, failures
        for name, (passed, total) in tally.items():
            print(f"  {name:<32}{passed:>5} of {total}", flush=True)
        for text in failures[:20]:
            print(f"FAIL {text}")
        print(f"  checks took {time.perf_counter() - started:.0f} s", flush=True)
    wide = kc.Shape(
        q_len=131072, kv_len=131072, head_dim=128, heads=32, kv_heads=8, block=128,
        dtype="bfloat16",
    )  # fmt: skip
    small = replace(wide, q_len=32768, kv_len=32768, head_dim=64, heads=9, kv_heads=3)
    shapes = (wide, replace(wide, q_len=32768, kv_len=32768), small)
    if not options.no_timing:
        result["times_ms"] = {}
        for shape in shapes:
            rows = time_parts(shape)
            result["times_ms"][shape.label()] = rows
            print(f"\n{shape.label()}: milliseconds")
            for name, value in rows.items():
                print(f"  {name:<32}{value:9.3f}", flush=True)
        tiny = replace(small, q_len=2048, kv_len=2048)
        result["host_ms_a_layer"] = {name: host_time(name, tiny) for name in POINTS}
        print("\nhost milliseconds a layer at 2,048 tokens, 9/3 heads of 64")
        for name, value in result["host_ms_a_layer"].items():
            print(f"  {name:<32}{value:9.3f}", flush=True)
    if options.sweep:
        result["sweep_ms"] = {}
        for shape in (wide, small):
            print(f"\nlast_block, {shape.label()}")
            result["sweep_ms"][shape.label()] = sweep(shape)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "decision.json").write_text(json.dumps(result, indent=1) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
