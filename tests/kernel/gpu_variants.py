"""Times every candidate configuration of the Hopper kernels and the cases that stress the schedule.

    python3 tests/kernel/gpu_variants.py [--json FILE] [--only SECTION ...] [--jobs N]

A configuration is first checked against float64 on odd shapes, in child processes that also fill
Triton's compilation cache; one that fails is reported and not timed. Times are medians of the
device alone, with the 20th and 80th percentile in the JSON. TFLOP/s count whole computed blocks,
the diagonal included. `gpu_tiles.py` compares variants of the schedule more closely.
"""

# ruff: noqa: B023, E731 -- every closure runs before its loop goes on

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import torch
import triton

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
import kernel_cases as kc  # noqa: E402

from sp_profile.bench.clock import Clock  # noqa: E402
from sp_runtime.block_index import BlockIndex  # noqa: E402
from sp_runtime.kernels import tuning  # noqa: E402
from sp_runtime.kernels.schedule import row_order  # noqa: E402
from sp_runtime.kernels.triton_backend import TritonKernels  # noqa: E402

DEVICE = "cuda"
LOG2_E = 1.4426950408889634
WIDE = kc.Shape(
    q_len=32768, kv_len=32768, head_dim=128, heads=32, kv_heads=8, block=128, dtype="bfloat16"
)
SMALL = replace(WIDE, head_dim=64, heads=9, kv_heads=3)
LENGTHS = (32768, 131072)


def of_length(shape: kc.Shape, length: int) -> kc.Shape:
    return replace(shape, q_len=length, kv_len=length)


def changes(config: tuning.AnyConfig, kept: tuning.AnyConfig) -> str:
    """What a configuration changes of the pinned one."""
    pairs = [(item.name, getattr(config, item.name)) for item in fields(config)]
    changed = [f"{name}={value}" for name, value in pairs if value != getattr(kept, name)]
    return " ".join(changed) or "pinned"


@dataclass
class Report:
    """Prints rows as they come and keeps them for the JSON."""

    clock: Clock
    rows: list[dict[str, Any]] = field(default_factory=list)

    def time(
        self, section: str, shape: kc.Shape, case: str, call: Callable[[], Any], flop: float = 0.0
    ) -> float:
        times = self.clock.measure(call).times
        row: dict[str, Any] = {"section": section, "shape": shape.label(), "case": case}
        row |= {"ms": times.median_ms, "ms_p20": times.p20_ms, "ms_p80": times.p80_ms}
        if flop:
            row["tflops"] = flop / times.median_ms / 1e9
        self.rows.append(row)
        return times.median_ms

    def note(self, section: str, shape: kc.Shape, case: str, value: float) -> None:
        self.rows.append({"section": section, "shape": shape.label(), "case": case, "ratio": value})


def verify(operation: str, config: tuning.AnyConfig, dim: int) -> str:
    """Empty if the configuration is right on odd lengths, chunks and grouped heads."""
    kernels = TritonKernels(pinned={operation: config})
    for q_len, kv_len in ((1000, 1000), (300, 1100), (5, 700)):
        shape = replace(
            WIDE, q_len=q_len, kv_len=kv_len, head_dim=dim, heads=4, kv_heads=2, batch=2
        )
        grid, scale = shape.grid, shape.scale
        q, k, v = kc.inputs(shape, DEVICE)
        full = BlockIndex.full(shape.batch, shape.heads, grid, DEVICE)
        every = kc.token_mask(full.to_mask(), grid)
        exact, exact_lse = kc.attention64(q, k, v, every, scale)
        bound = 2 * (kc.eager(q, k, v, every, scale).double() - exact).abs().max() + 4e-6
        if operation == "hopper":
            out, lse = kernels.attention(q, k, v, full, scale=scale)
            gaps = [(out.double() - exact).abs().max(), (lse.double() - exact_lse).abs().max()]
            right = bool(gaps[0] <= bound) and bool(gaps[1] <= 2e-3)
        else:
            slots = torch.tensor([[3, -1, 0]] * 2, device=DEVICE)
            mass = kernels.block_mass(q, k, exact_lse.float(), slots, grid, scale=scale)
            wanted = kc.mass64(q, k, grid, scale)[:, [3, 0]]
            right = bool((mass[:, ::2].double() - wanted).abs().max() <= 2e-3)
            right = right and bool((mass[:, 1] == 0).all())
        if not right:
            return f"wrong on {shape.label()}"
    return ""


def verified(pool: Pool, operation: str, dim: int) -> Iterator[tuple[str, tuning.AnyConfig]]:
    """(label, configuration) of the candidates that are right; prints the others."""
    every = tuning.candidates(operation, (9, 0), dim, 128, "half")
    waiting = [pool.apply_async(verify, (operation, config, dim)) for config in every]
    for config, result in zip(every, waiting, strict=True):
        label = changes(config, every[0])
        try:
            problem = result.get(timeout=180)
        except multiprocessing.TimeoutError:
            raise SystemExit(f"{operation} {label}: no result after 180 s, does it hang?") from None
        except Exception as error:  # a candidate may not fit or crash: say so and go on
            problem = f"{type(error).__name__}: {str(error)[:100]}"
        if problem:
            print(f"  {label:<44} NOT TIMED: {problem}", flush=True)
        else:
            yield label, config


def indices(shape: kc.Shape) -> dict[str, BlockIndex]:
    """Dense flags, and random masks of two densities."""
    found = {"dense": BlockIndex.full(1, shape.heads, shape.grid, DEVICE)}
    for density in (0.25, 0.05):
        mask = kc.random_mask(shape, density, DEVICE)
        found[f"{density:.0%}"] = BlockIndex.from_mask(mask, shape.grid)
    return found


def flop_of(shape: kc.Shape, index: BlockIndex, products: int = 2) -> float:
    return 2.0 * products * shape.block**2 * shape.head_dim * int(index.blocks().sum())


def attention_configs(report: Report, pool: Pool) -> None:
    """The attention kernel alone, without the launch that orders the rows."""
    from sp_runtime.kernels.hopper_launch import hopper_attention

    for base in (SMALL, WIDE):
        found = list(verified(pool, "hopper", base.head_dim))
        for length in LENGTHS:
            shape = of_length(base, length)
            q, k, v = kc.inputs(shape, DEVICE)
            out, lse = torch.empty_like(q), torch.empty(q.shape[:3], device=DEVICE)
            cases = indices(shape)
            if length > 65536:  # a dense call takes long and tells nothing that 25 % does not
                del cases["dense"]
            group = shape.heads // shape.kv_heads
            orders = {name: row_order(index, group) for name, index in cases.items()}
            flops = {name: flop_of(shape, index) for name, index in cases.items()}
            print(f"\nattention {shape.label()}: TFLOP/s at {', '.join(cases)}")
            for label, config in found:
                text = ""
                for name, index in cases.items():
                    call = lambda i=index, o=orders[name], c=config: hopper_attention(
                        q, k, v, out, lse, i, o, c, scale_log2=shape.scale * LOG2_E
                    )
                    case = f"{label} | {name}"
                    ms = report.time("attention", shape, case, call, flops[name])
                    text += f"{flops[name] / ms / 1e9:7.0f}"
                print(f"  {label:<44}{text}", flush=True)


def mass_configs(report: Report, pool: Pool) -> None:
    """Block mass against the dense attention of as many heads."""
    for base in (WIDE, SMALL):
        found: list[tuple[str, tuning.AnyConfig | None]] = [("portable", None)]
        found += list(verified(pool, "hopper_mass", base.head_dim))
        for length in LENGTHS:
            shape = of_length(base, length)
            q, k, v = kc.inputs(shape, DEVICE)
            full = BlockIndex.full(1, shape.heads, shape.grid, DEVICE)
            kernels = TritonKernels()
            _, lse = kernels.attention(q, k, v, full, scale=shape.scale)
            dense = report.time(
                "mass", shape, "dense attention, all heads",
                lambda: kernels.attention(q, k, v, full, scale=shape.scale), flop_of(shape, full),
            ) / shape.heads  # fmt: skip
            one = torch.full((1, 1), shape.heads - 1, device=DEVICE)
            four = torch.full((1, 4), -1, device=DEVICE)
            four[0, 2] = 0  # one used slot of four
            every = torch.arange(shape.heads, device=DEVICE)[None]
            print(
                f"\nmass {shape.label()}: dense attention of one head {dense:.3f} ms; ratio to it"
            )
            print(f"  {'':<44}{'1 head':>9}{'1 of 4':>9}{'all':>9}")
            for label, config in found:
                backend = TritonKernels(hopper=False)
                if config is not None:
                    backend = TritonKernels(pinned={"hopper_mass": config})
                text = ""
                for name, heads, used in (("1", one, 1), ("1 of 4", four, 1), ("all", every, 0)):
                    call = lambda b=backend, h=heads: b.block_mass(
                        q, k, lse, h, shape.grid, scale=shape.scale
                    )
                    ms = report.time("mass", shape, f"{label} | {name}", call)
                    ratio = ms / (used or shape.heads) / dense
                    report.note("mass", shape, f"{label} | {name} / dense", ratio)
                    text += f"{ratio:9.3f}"
                print(f"  {label:<44}{text}", flush=True)


def pivot(report: Report, _pool: Pool) -> None:
    """One dense head among sparse ones, against as many blocks spread evenly over the heads."""
    from sp_runtime.kernels.hopper_launch import hopper_attention

    kernels = TritonKernels()
    print("\npivot: one dense head among 31 at 5 %, time against as many blocks spread evenly")
    for length in LENGTHS:
        shape = of_length(WIDE, length)
        q, k, v = kc.inputs(shape, DEVICE)
        out, lse = torch.empty_like(q), torch.empty(q.shape[:3], device=DEVICE)
        causal = shape.grid.num_causal_blocks
        even = (31 * 0.05 + 1) / 32
        spread = BlockIndex.from_mask(kc.random_mask(shape, even, DEVICE), shape.grid)
        flop = flop_of(shape, spread)
        base = report.time(
            "pivot", shape, "even",
            lambda: kernels.attention(q, k, v, spread, scale=shape.scale), flop,
        )  # fmt: skip
        base /= int(spread.blocks().sum())
        text = ""
        for head in (0, 31):
            dense = torch.zeros(1, 32, dtype=torch.bool, device=DEVICE)
            dense[0, head] = True
            index = BlockIndex.from_mask(kc.random_mask(shape, 0.05, DEVICE), shape.grid, dense)
            blocks = int(index.blocks().sum())
            assert blocks > causal
            ms = report.time(
                "pivot", shape, f"head {head}",
                lambda i=index: kernels.attention(q, k, v, i, scale=shape.scale),
                flop_of(shape, index),
            )  # fmt: skip
            text += f"  head {head}: {ms / blocks / base:.3f}"
            report.note("pivot", shape, f"head {head} / even", ms / blocks / base)
            order = row_order(index, 4)
            ways = {"static": {"dynamic": False}, "dynamic": {"dynamic": True}}
            for name, way in ways.items():
                config = replace(tuning.HOPPER[128], **way)
                ms = report.time(
                    "pivot", shape, f"head {head}, kernel alone, {name}",
                    lambda i=index, o=order, c=config: hopper_attention(
                        q, k, v, out, lse, i, o, c, scale_log2=shape.scale * LOG2_E
                    ),
                )  # fmt: skip
                text += f" (kernel alone, {name} {ms / blocks / base:.3f})"
        print(f"  {length}:{text}", flush=True)


def shared(report: Report, _pool: Pool) -> None:
    """Masks that heads share, against random masks of the same density."""
    kernels = TritonKernels()
    print("\nshared masks: TFLOP/s on blocks, and time of random masks over that of shared ones")
    for length in LENGTHS:
        shape = of_length(WIDE, length)
        q, k, v = kc.inputs(shape, DEVICE)
        for density in (0.25, 0.05):
            mask = kc.random_mask(shape, density, DEVICE)
            rates: dict[str, float] = {}
            text = ""
            for name, share in (("random", 1), ("4 heads", 4), ("8 heads", 8), ("all", 32)):
                same = mask[:, ::share].repeat_interleave(share, 1)
                index = BlockIndex.from_mask(same, shape.grid)
                call = lambda i=index: kernels.attention(q, k, v, i, scale=shape.scale)
                flop = flop_of(shape, index)
                ms = report.time("shared", shape, f"{density:.0%} {name}", call, flop)
                rates[name] = flop / ms / 1e9
                text += f"  {name} {rates[name]:.0f} ({rates[name] / rates['random']:.2f})"
            print(f"  {length} {density:.0%}:{text}", flush=True)


def around(report: Report, _pool: Pool) -> None:
    """What the attention call adds to its kernel, and chunks at offsets on and off the grid."""
    kernels = TritonKernels()
    print("\naround the kernel")
    for base in (WIDE, SMALL):
        for length in LENGTHS:
            shape = of_length(base, length)
            q, k, v = kc.inputs(shape, DEVICE)
            index = indices(shape)["5%"]
            call = report.time(
                "around", shape, "attention call at 5 %",
                lambda: kernels.attention(q, k, v, index, scale=shape.scale),
            )  # fmt: skip
            unsorted = TritonKernels(sort_rows=False)
            plain = report.time(
                "around", shape, "attention call at 5 %, rows not ordered",
                lambda: unsorted.attention(q, k, v, index, scale=shape.scale),
            )  # fmt: skip
            print(f"  {shape.label()} 5 %: {call:.3f} ms, rows not ordered {plain:.3f} ms")
        for kv_len in (65536, 65536 + 77):
            shape = replace(base, q_len=8192, kv_len=kv_len)
            q, k, v = kc.inputs(shape, DEVICE)
            full = BlockIndex.full(1, shape.heads, shape.grid, DEVICE)
            call = report.time(
                "around", shape, "chunk of 8192, dense flags",
                lambda: kernels.attention(q, k, v, full, scale=shape.scale), flop_of(shape, full),
            )  # fmt: skip
            rate = flop_of(shape, full) / call / 1e9
            print(f"  chunk {shape.label()}: {rate:.0f} TFLOP/s", flush=True)


SECTIONS = {
    "pivot": pivot,
    "attention": attention_configs,
    "around": around,
    "shared": shared,
    "mass": mass_configs,
}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--json", type=Path, help="write every row here")
    parser.add_argument("--jobs", type=int, default=12, help="processes that check and compile")
    options = parser.parse_args()
    name = torch.cuda.get_device_name()
    versions = f"torch {torch.__version__}  triton {triton.__version__}"
    print(f"{name}  {versions}")
    if torch.cuda.get_device_capability()[0] != 9:
        print("the Hopper kernels need a GPU of compute capability 9.x", file=sys.stderr)
        return 1
    report = Report(Clock(torch.device(DEVICE), budget_ms=200))
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        for section in options.only:
            SECTIONS[section](report, pool)
            if options.json:  # after every section: a run may meet its time limit
                document = {"command": sys.argv, "gpu": name, "versions": versions}
                options.json.write_text(json.dumps(document | {"rows": report.rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
