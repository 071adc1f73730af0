"""Checks and times what surrounds the attention kernel, on the GPU; needs torch and Triton alone.

    python3 tests/kernel/decision_check.py --out DIR [--quick] [--no-timing] [--no-checks] [--sweep]

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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import triton

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
import kernel_cases as kc  # noqa: E402
import selection_cases as sc  # noqa: E402
from gpu_check import gap, poison, timed  # noqa: E402

from sp_runtime.engine import Engine  # noqa: E402
from sp_runtime.kernels import triton_index, tuning  # noqa: E402
from sp_runtime.kernels.program import Program  # noqa: E402
from sp_runtime.kernels.triton_backend import TritonKernels  # noqa: E402
from sp_runtime.operating_point import OperatingPoint  # noqa: E402
from sp_runtime.patterns.flexprefill import FlexPrefillPattern  # noqa: E402
from sp_runtime.patterns.plan import PlanPattern  # noqa: E402
from sp_runtime.patterns.plan_tables import PlanTables  # noqa: E402
from sp_runtime.patterns.sampled import SampledPattern  # noqa: E402
from sp_runtime.patterns.share import SharePattern  # noqa: E402
from sp_runtime.patterns.share_tables import ShareTables  # noqa: E402
from sp_runtime.patterns.vertical_slash import VerticalSlashPattern  # noqa: E402
from sp_runtime.profile import Cluster, ClusterEvidence, HeadPlan, HeadRef  # noqa: E402

DEVICE = "cuda"
LAYERS = 3
POINTS = {
    "vertical_slash": OperatingPoint(method="vertical_slash", min_budget=64, min_tokens=64),
    "share:paper": OperatingPoint(
        method="share", rule="paper", min_budget=64, min_tokens=64, delta=1.01, tau=1.0
    ),
    "share:release": OperatingPoint(
        method="share", rule="release", min_budget=64, min_tokens=64, tau=1.0, kappa=0.0, phi=1.0
    ),
    "flexprefill": OperatingPoint(method="flexprefill", min_budget=64, min_tokens=64, kappa=0.3),
    "sampled": OperatingPoint(method="sampled", min_budget=64, min_tokens=64, stride=16),
    "plan": OperatingPoint(rule="plan", min_budget=64, min_tokens=64, local_blocks=1),
    "plan:drift": OperatingPoint(
        rule="plan", min_budget=64, min_tokens=64, local_blocks=1, last_rows=1, drift=0.05
    ),
}
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


def clusters(heads: int) -> tuple[Cluster, ...]:
    """Two enabled clusters over every layer: heads 0, 2, 4 ... and 1, 3, 5 ... but the last."""
    evidence = ClusterEvidence(
        jaccard_mean=0.6, jaccard_core_mean=0.5, recall_mean=0.9, recall_p10=0.9,
        lender_density=0.2, vertical_slash_density=0.4, saving=0.1, reason="an example",
    )  # fmt: skip
    return tuple(
        Cluster(
            id=first,
            members=tuple(
                HeadRef(layer, head)
                for layer in range(LAYERS)
                for head in range(first, heads - 1, 2)
            ),
            anchor=HeadRef(0, first),
            enabled=True,
            evidence=evidence,
        )
        for first in range(2)
    )


def plan_heads(heads: int) -> list[HeadPlan]:
    """Every assignment, sampled heads of one stride, and lenders of the same and other layers."""
    plans = []
    for ref in (HeadRef(layer, head) for layer in range(LAYERS) for head in range(heads)):
        kind: dict[str, Any] = {"assignment": "sampled", "stride": 16}
        if ref.head == 0:
            kind = {"assignment": "vertical_slash"}
        elif ref.head == 1:
            kind = {"assignment": "streaming", "window": 128}
        elif ref.head == 2 and ref.layer == 0:
            kind = {"assignment": "dense"}
        elif ref.head == 3:
            kind = {"assignment": "borrow", "lender": HeadRef(ref.layer, heads - 1)}
        elif ref.head == 4 < heads - 1:
            kind = {"assignment": "query_aware"}
        elif ref.head < heads - 1 and ref.layer > 0:
            kind = {"assignment": "borrow", "lender": HeadRef(0, 2 if ref.head == 2 else heads - 1)}
        plans.append(HeadPlan(**ref._asdict(), gamma=0.9, recall=0.9, cost=0.3, **kind))
    return plans


def make_engine(name: str, *, heads: int, block: int, kernels: Any = None) -> Engine:
    """An engine of three layers for one of POINTS."""
    point = POINTS[name]
    tables = ShareTables(clusters(heads), block_size=block)
    plan = PlanTables(plan_heads(heads), block_size=block, dense_layers=0)
    make: dict[str, Callable[[], Any]] = {
        "vertical_slash": lambda: VerticalSlashPattern(point=point),
        "flexprefill": lambda: FlexPrefillPattern(point=point),
        "sampled": lambda: SampledPattern(point=point),
        "share": lambda: SharePattern(point=point, tables=tables),
        "plan": lambda: PlanPattern(point=point, tables=plan),
    }
    return Engine(
        make_pattern=make["plan" if name.startswith("plan") else point.method],
        point=point,
        kernels=TritonKernels() if kernels is None else kernels,
        block_size=block,
        layers=tuple(range(LAYERS)),
    )


def forward(engine: Engine, q: Any, k: Any, v: Any) -> list[torch.Tensor]:
    """The outputs of every layer; q, k, v have a layer dimension first."""
    engine.report.clear()
    engine.begin(q_len=q.shape[3], kv_len=k.shape[3])
    scale = q.shape[-1] ** -0.5
    return [engine.attend(layer=i, q=q[i], k=k[i], v=v[i], scale=scale) for i in range(q.shape[0])]


def layer_inputs(shape: kc.Shape, seed: int) -> list[torch.Tensor]:
    """q, k, v [layers, B, H, N, D] of LAYERS layers."""
    every = [kc.inputs(shape, DEVICE, seed=seed + layer) for layer in range(LAYERS)]
    return [torch.stack(part) for part in zip(*every, strict=True)]


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
        static = layer_inputs(shape, 0)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            forward(engine, *static)  # compiles, and uploads the tables of the method
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = forward(engine, *static)
        for seed in (100, 200):
            fresh = layer_inputs(shape, seed)
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
        inputs = layer_inputs(shape, 0)
        for name in POINTS:
            forward(make_engine(name, heads=6, block=128), *inputs)
        if not first:
            first = compiled_variants()
    last = compiled_variants()
    print(f"  compiled variants after 1 and {len(lengths)} lengths:")
    for name, number in sorted(last.items()):
        print(f"    {name:<24}{first.get(name, 0):>4}{number:>4}")
        yield f"variants {name}", f"{len(lengths)} lengths", first.get(name) == number


@contextmanager
def recorded() -> Iterator[list[tuple[Program, dict[str, torch.Tensor]]]]:
    """Collects every launch and its tensors, and makes it as well."""
    launches: list[tuple[Program, dict[str, torch.Tensor]]] = []
    real = Program.__call__

    def start(program: Program, **tensors: torch.Tensor) -> None:
        launches.append((program, tensors))
        real(program, **tensors)

    Program.__call__ = start  # type: ignore[method-assign]
    try:
        yield launches
    finally:
        Program.__call__ = real  # type: ignore[method-assign]


def time_parts(shape: kc.Shape) -> dict[str, float]:
    """Milliseconds of each launch of a vertical-slash decision, and of what it is measured by."""
    kernels = TritonKernels()
    grid, scale = shape.grid, shape.scale
    q, k, v = kc.inputs(shape, DEVICE)
    group = shape.heads // shape.kv_heads

    def decide() -> torch.Tensor:
        estimate = kernels.last_block(q, k, grid, scale=scale)
        mask = kernels.vertical_slash(
            estimate, grid, gamma=0.9, min_budget=1024, max_budget=None, slash_cover="both"
        )
        index = kernels.build_index(mask, grid, None)
        return triton_index.row_schedule(index, group)[0]

    decide()
    with recorded() as launches:
        decide()
    rows: dict[str, float] = {}
    for program, tensors in launches:
        rows[program.kernel.__name__] = timed(lambda p=program, t=tensors: p(**t))
    rows["decision, all launches"] = timed(decide)
    peaked = sc._estimate(
        sc.Case(q_len=shape.q_len, kv_len=shape.kv_len, block=shape.block, heads=shape.heads),
        DEVICE,
        exact=False,
    )
    peaked = replace(peaked, sums=peaked.block_sums(grid))
    rows["vertical_slash, peaked rows"] = timed(
        lambda: kernels.vertical_slash(
            peaked, grid, gamma=0.9, min_budget=1024, max_budget=None, slash_cover="both"
        )
    )
    mass = torch.rand(1, shape.heads, grid.num_rows, grid.num_cols, device=DEVICE) ** 8
    mass = mass * grid.causal_mask(DEVICE)
    mass = mass / mass.sum(-1, keepdim=True)
    rows["gamma_mask, all heads"] = timed(lambda: kernels.gamma_mask(mass, 0.9))
    rows["flat_gamma_mask, all heads"] = timed(lambda: kernels.flat_gamma_mask(mass, 0.9))
    index = kernels.build_index(kc.random_mask(shape, 0.1, DEVICE), grid, None)
    rows["attention, density 10 %"] = timed(lambda: kernels.attention(q, k, v, index, scale=scale))
    whole = rows["decision, all launches"] + rows["attention, density 10 %"]
    rows["share of the layer"] = rows["decision, all launches"] / whole
    return rows


def host_time(name: str, shape: kc.Shape) -> float:
    """Milliseconds of host time a layer: short work, so that the device never holds it up."""
    engine = make_engine(name, heads=shape.heads, block=shape.block)
    inputs = layer_inputs(shape, 0)
    forward(engine, *inputs)
    best = float("inf")
    for _ in range(20):
        torch.cuda.synchronize()
        started = time.perf_counter()
        forward(engine, *inputs)
        best = min(best, time.perf_counter() - started)
    torch.cuda.synchronize()
    return best * 1e3 / LAYERS


def sweep(shape: kc.Shape) -> dict[str, float]:
    """Milliseconds of the last-block estimate in other configurations (sm_90 table)."""
    q, k, _ = kc.inputs(shape, DEVICE)
    found: dict[str, float] = {}
    candidates = {
        "estimate": [
            (64, 64, 4, 1, 16), (64, 64, 4, 1, 32), (64, 64, 4, 2, 16), (64, 64, 8, 1, 16),
            (64, 64, 8, 2, 16), (32, 32, 4, 1, 32),
        ],
        "row_lse": [(128, 128, 8, 2, 32), (128, 128, 8, 3, 16), (64, 128, 4, 2, 16)],
    }  # fmt: skip
    for operation, every in candidates.items():
        key = (operation, tuning.padded_head_dim(shape.head_dim), shape.block)
        kept = tuning._SM90[key]
        for block_m, block_n, warps, stages, chunk in every:
            label = f"{operation} {block_m}x{block_n} warps {warps} stages {stages} chunk {chunk}"
            tuning._SM90[key] = replace(
                kept, block_m=block_m, block_n=block_n, num_warps=warps, num_stages=stages,
                chunk=chunk,
            )  # fmt: skip
            try:
                kernels = TritonKernels()
                call = lambda b=kernels: b.last_block(q, k, shape.grid, scale=shape.scale)  # noqa: E731
                found[label] = timed(call)
                print(f"  {label:<56}{found[label]:9.3f} ms", flush=True)
            except Exception as error:  # a candidate may not fit the machine
                print(f"  {label:<56}{type(error).__name__}: {str(error)[:80]}", flush=True)
        tuning._SM90[key] = kept
    return found


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
    options = parser.parse_args()
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
