"""What a tile of the Hopper attention kernel costs besides its blocks: variants, side by side.

    python3 tests/kernel/gpu_tiles.py [--json FILE] [--jobs N]

Every variant is first checked against float64, in child processes that also fill Triton's
compilation cache: on odd lengths, with buffers of NaN, twice, and with half of the schedule's
tickets lost as where processes take turns on a GPU. One that fails is reported and not timed.

Then the variants take turns, so that the clock of the GPU is the same for all. Times are medians of
the device alone. TFLOP/s count whole computed blocks. "us/tile" is what a tile takes besides its
blocks, from the line through the times at two densities. The lists of "first keys" are as long as
those of 5 %, but of the same few key blocks: nothing but the schedule and L2 can make them faster.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
import kernel_cases as kc  # noqa: E402
from gpu_variants import changes  # noqa: E402

from sp_profile.bench.check import Inputs  # noqa: E402
from sp_profile.bench.device_timer import CudaQueue, DeviceTimer  # noqa: E402
from sp_profile.bench.inputs import LayerShape, random_inputs  # noqa: E402
from sp_profile.bench.masks import MaskMaker  # noqa: E402
from sp_profile.bench.peers import PointerPeer, Work  # noqa: E402
from sp_runtime.block_index import BlockIndex  # noqa: E402
from sp_runtime.kernels import tuning  # noqa: E402
from sp_runtime.kernels.launch import LOG2_E  # noqa: E402
from sp_runtime.kernels.schedule import row_order  # noqa: E402
from sp_runtime.kernels.triton_backend import TritonKernels  # noqa: E402
from sp_runtime.kernels.tuning import HopperConfig  # noqa: E402

DEVICE = torch.device("cuda")
DENSITIES = (0.25, 0.05)
ROUNDS = 4
WIDE = LayerShape(
    length=131072, heads=32, kv_heads=8, head_dim=128, block_size=128, dtype="bfloat16"
)
SHAPES = (
    WIDE,
    replace(WIDE, length=32768),
    replace(WIDE, length=32768, heads=9, kv_heads=3, head_dim=64),
)
# Several tiles a multiprocessor, a query offset off the block grid; fewer tiles than programs.
CHECKED = tuple(
    kc.Shape(
        q_len=q_len, kv_len=kv_len, heads=24, kv_heads=6, head_dim=128, block=128, dtype="bfloat16"
    )
    for q_len, kv_len in ((4069, 4402), (300, 1100))
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """A configuration of the kernel, by what it changes of the pinned one."""

    name: str
    config: HopperConfig


def variants(dim: int) -> Iterator[Variant]:
    """The pinned configuration first."""
    for config in tuning.candidates("hopper", (9, 0), dim, 128, "half"):
        assert isinstance(config, HopperConfig)
        yield Variant(name=changes(config, tuning.HOPPER[dim]), config=config)


def attention(
    inputs: Inputs, index: BlockIndex, order: torch.Tensor, config: HopperConfig,
    out: torch.Tensor, lse: torch.Tensor,
) -> None:  # fmt: skip
    from sp_runtime.kernels.hopper_launch import hopper_attention

    hopper_attention(
        inputs.q, inputs.k, inputs.v, out, lse, index, order, config,
        scale_log2=inputs.scale * LOG2_E,
    )  # fmt: skip


def wrong(variant: Variant, dim: int) -> str:
    """Why a variant must not be timed, empty if it is right."""
    for shape in (replace(each, head_dim=dim) for each in CHECKED):
        grid, group = shape.grid, shape.heads // shape.kv_heads
        q, k, v = kc.inputs(shape, "cuda")
        index = BlockIndex.from_mask(kc.random_mask(shape, 0.3, "cuda"), grid)
        mask = index.to_mask()
        order = row_order(index, group)
        exact, bound = torch.empty_like(q, dtype=torch.float64), 0.0
        for head in range(shape.heads):
            one, kv = slice(head, head + 1), slice(head // group, head // group + 1)
            tokens = kc.token_mask(mask[:, one], grid)
            args = (q[:, one], k[:, kv], v[:, kv], tokens, shape.scale)
            exact[:, one], _ = kc.attention64(*args)
            bound = max(bound, 2 * float((kc.eager(*args).double() - exact[:, one]).abs().max()))
        inputs = Inputs(q=q, k=k, v=v, grid=grid, scale=shape.scale)
        for lost in (False, False, True):
            out, lse = torch.full_like(q, torch.nan), torch.empty(q.shape[:3], device=DEVICE)
            with tickets_lost(index.dense.numel() // 2 if lost else 0) as counter:
                attention(inputs, index, order, variant.config, out, lse)
            assert counter.called, "the counter is no longer made by torch.zeros"
            gap = float((out.double() - exact).abs().max())
            if not gap <= bound + 4e-6:  # NaN too
                return f"off by {gap:.2g} on {shape.label()}{', tickets lost' if lost else ''}"
    return ""


def tickets_lost(count: int) -> Any:
    """The schedule's counter starts at this number: so many tiles are handed out to nobody."""
    zeros = torch.zeros

    def counter(*size: Any, **options: Any) -> torch.Tensor:
        made = zeros(*size, **options)
        if made.dtype == torch.int32 and made.dim() == 1:
            made[0] = count
        return made

    return mock.patch.object(torch, "zeros", side_effect=counter)


def checked(jobs: int) -> dict[int, list[Variant]]:
    """By head_dim, the variants that are right; prints the others."""
    found: dict[int, list[Variant]] = {128: [], 64: []}
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        every = [(dim, variant) for dim in found for variant in variants(dim)]
        waiting = [pool.apply_async(wrong, (variant, dim)) for dim, variant in every]
        for (dim, variant), result in zip(every, waiting, strict=True):
            try:
                problem = result.get(timeout=60)
            except multiprocessing.TimeoutError:
                problem = "no result after 60 s, does it hang?"
            except Exception as error:  # a variant may crash or not fit: say so and go on
                problem = f"{type(error).__name__}: {str(error)[:200]}"
            if problem:
                print(f"head_dim {dim}, {variant.name}: NOT TIMED: {problem}", flush=True)
            else:
                found[dim].append(variant)
    return found


def first_keys(index: BlockIndex) -> BlockIndex:
    """Lists as long as the index's, of the diagonal and the first key blocks."""
    mask, grid = index.to_mask(), index.grid
    columns = torch.arange(grid.num_cols, device=DEVICE)
    short = columns < mask.sum(-1, keepdim=True) - 1
    return BlockIndex.from_mask(short | grid.diagonal_mask(DEVICE), grid)


def take_turns(calls: dict[str, Callable[[], Any]], queue: CudaQueue) -> dict[str, float]:
    """Median milliseconds of each call, the device alone."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(ROUNDS):
        for name, call in calls.items():
            runs = DeviceTimer(queue).time(call, 2, lambda ms: int(min(max(40 / ms, 2), 12)))
            found[name] += runs.milliseconds
    return {name: statistics.median(times) for name, times in found.items()}


def compare(shape: LayerShape, found: list[Variant], queue: CudaQueue) -> Iterator[dict[str, Any]]:
    """The rows of one shape, and its table."""
    inputs = random_inputs(shape, DEVICE, 0)
    out = torch.empty_like(inputs.q)
    lse = torch.empty(inputs.q.shape[:3], device=DEVICE)
    group = shape.heads // shape.kv_heads
    maker = MaskMaker(
        grid=shape.grid, heads=shape.heads, group=group, cluster=group, seed=0, device=DEVICE
    )
    cases = {
        f"{density:.0%}": BlockIndex.from_mask(maker.make("random", density)[0].mask, shape.grid)
        for density in DENSITIES
    }
    cases["first keys"] = first_keys(cases["5%"])
    blocks = {name: int(index.blocks().sum()) for name, index in cases.items()}
    times: dict[str, dict[str, float]] = {}
    for name, index in cases.items():
        order = row_order(index, group)
        calls: dict[str, Callable[[], Any]] = {}
        for each in found:
            calls[each.name] = lambda i=index, o=order, c=each.config: attention(  # type: ignore[misc]
                inputs, i, o, c, out, lse
            )
        if name == "5%":
            calls["attention call, pinned"] = lambda i=index: TritonKernels().attention(  # type: ignore[misc]
                inputs.q, inputs.k, inputs.v, i, scale=inputs.scale
            )
            peer = PointerPeer().prepare(Work(inputs=inputs, index=index, is_dense=False))
            calls["FlexPrefill's schedule"] = peer
        for label, ms in take_turns(calls, queue).items():
            times.setdefault(label, {})[name] = ms
    tiles = cases["5%"].dense.numel() / multiprocessors()
    print(f"\nhead_dim {shape.head_dim}, {shape.heads}/{shape.kv_heads} heads, {shape.length}")
    print(f"  {'TFLOP/s':<36}" + "".join(f"{name:>11}" for name in cases) + "  us/tile  5 % gains")
    for label, row in times.items():
        rates = {n: blocks[n] * shape.operations_per_block / ms / 1e9 for n, ms in row.items()}
        text = f"  {label:<36}" + "".join(
            f"{rates[name]:11.0f}" if name in rates else f"{'':>11}" for name in cases
        )
        if "25%" in row:
            share = blocks["5%"] / blocks["25%"]
            fixed = 1e3 * (row["5%"] - share * row["25%"]) / (1 - share) / tiles
            text += f"{fixed:9.2f}"
        else:
            text += f"{'':>9}"
        print(f"{text}{times['pinned']['5%'] / row['5%']:11.3f}", flush=True)
        for name, ms in row.items():
            yield {
                "head_dim": shape.head_dim, "length": shape.length, "variant": label,
                "mask": name, "blocks": blocks[name], "ms": ms, "tflops": rates[name],
            }  # fmt: skip


def multiprocessors() -> int:
    return int(torch.cuda.get_device_properties(DEVICE).multi_processor_count)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", type=Path, help="write every time here")
    parser.add_argument("--jobs", type=int, default=16, help="processes that check and compile")
    options = parser.parse_args()
    began = time.monotonic()
    if torch.cuda.get_device_capability()[0] != 9:
        print("the Hopper kernels need a GPU of compute capability 9.x", file=sys.stderr)
        return 1
    name = torch.cuda.get_device_name()
    versions = f"torch {torch.__version__}  triton {triton.__version__}"
    print(f"{name}  {versions}", flush=True)
    found = checked(options.jobs)
    print(f"checked after {time.monotonic() - began:.0f} s", flush=True)
    queue = CudaQueue(DEVICE)
    rows: list[dict[str, Any]] = []
    for shape in SHAPES:
        rows += compare(shape, found[shape.head_dim], queue)
        if options.json:  # after every shape: a run may meet its time limit
            document = {"command": sys.argv, "gpu": name, "versions": versions, "rows": rows}
            options.json.write_text(json.dumps(document, indent=1))
    print(f"\n{time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
