"""Times of what surrounds the attention kernel, for decision_check.py."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import kernel_cases as kc
import selection_cases as sc
import torch
from engine_cases import LAYERS, forward, make_engine
from gpu_check import DEVICE, timed

from sp_runtime.kernels import triton_index, tuning
from sp_runtime.kernels.program import Program
from sp_runtime.kernels.triton_backend import TritonKernels


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
    rows["gamma_mask of whole maps"] = timed(lambda: kernels.gamma_mask(mass, 0.9, row_slack=2.0))
    means = kernels.pool(q, k, grid)
    rows["query_aware, all heads"] = timed(
        lambda: kernels.query_aware(means, grid, gamma=0.9, scale=scale)
    )
    index = kernels.build_index(kc.random_mask(shape, 0.1, DEVICE), grid, None)
    rows["attention, density 10 %"] = timed(lambda: kernels.attention(q, k, v, index, scale=scale))
    whole = rows["decision, all launches"] + rows["attention, density 10 %"]
    rows["share of the layer"] = rows["decision, all launches"] / whole
    return rows


def host_time(name: str, shape: kc.Shape) -> float:
    """Milliseconds of host time a layer: short work, so that the device never holds it up."""
    engine = make_engine(name, heads=shape.heads, block=shape.block)
    inputs = kc.layer_inputs(shape, LAYERS, DEVICE, seed=0)
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
