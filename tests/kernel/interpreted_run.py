"""Runs every Triton kernel under the interpreter and prints one JSON line a check.

    TRITON_INTERPRET=1 python tests/kernel/interpreted_run.py sm90

Started by test_triton_interpreted.py with TRITON_INTERPRET=1, which Triton reads on import.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import kernel_cases as kc

from sp_runtime.block_index import BlockIndex
from sp_runtime.kernels.triton_backend import TritonKernels

CAPABILITIES = {"sm80": (8, 0), "sm90": (9, 0)}
SHAPES = (
    kc.Shape(q_len=130, kv_len=130),
    kc.Shape(q_len=200, kv_len=200, dtype="float16", heads=4, kv_heads=2, batch=2),
    kc.Shape(q_len=70, kv_len=203, dtype="float16"),
    kc.Shape(q_len=5, kv_len=5, dtype="float16"),
    kc.Shape(q_len=192, kv_len=192, dtype="float16", heads=3, kv_heads=3),
    kc.Shape(q_len=150, kv_len=290, dtype="float16", head_dim=80, block=128),
    kc.Shape(q_len=1, kv_len=129, dtype="float16", block=128),
)


def report(name: str, shape: kc.Shape, error: float, bound: float) -> None:
    line = {"check": name, "shape": shape.label(), "error": error, "bound": bound}
    print(json.dumps(line), flush=True)


def poison() -> None:
    """Make every buffer that is allocated without a fill start as NaN (or a wild integer)."""
    real = torch.empty

    def empty(*size, **options):  # type: ignore[no-untyped-def]
        out = real(*size, **options)
        if out.is_floating_point():
            return out.fill_(float("nan"))
        return out.fill_(0x5A if out.element_size() == 1 else 2**30)

    torch.empty = empty  # type: ignore[assignment]


def gap(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference; NaN anywhere counts as infinite."""
    worst = (found.double() - expected.double()).abs().max().item()
    return worst if worst == worst else float("inf")


def run(shape: kc.Shape, capability: tuple[int, int]) -> None:
    kernels = TritonKernels(capability=capability, hopper=False)  # Gluon has no interpreter
    grid, scale = shape.grid, shape.scale
    q, k, v = kc.inputs(shape, "cpu")
    half = shape.dtype == "float16"

    mask = kc.random_mask(shape, 0.4, "cpu")
    dense = torch.zeros(shape.batch, shape.heads, dtype=torch.bool)
    dense[:, -1] = True
    index = kernels.build_index(mask, grid, dense)
    expected = BlockIndex.from_mask(mask, grid, dense)
    used = int(expected.row_ptr[-1])
    same = torch.equal(index.row_ptr, expected.row_ptr) and torch.equal(
        index.col_idx[:used], expected.col_idx[:used]
    )
    report("build_index", shape, 0.0 if same else 1.0, 0.0)

    tokens = kc.token_mask(expected.to_mask(), grid)
    exact, exact_lse = kc.attention64(q, k, v, tokens, scale)
    out, lse = kernels.attention(q, k, v, index, scale=scale)
    bound = 2 * gap(kc.eager(q, k, v, tokens, scale), exact) + 1e-6
    report("attention", shape, gap(out, exact), bound)
    report("lse", shape, gap(lse, exact_lse), 2e-3 if half else 1e-5)
    laid_out = out.transpose(1, 2).is_contiguous()
    report("layout", shape, 0.0 if laid_out else 1.0, 0.0)

    full = BlockIndex.full(shape.batch, shape.heads, grid, "cpu")
    _, dense_lse = kernels.attention(q, k, v, full, scale=scale)
    slots = torch.tensor([-1, shape.heads - 1]).expand(shape.batch, 2)  # one memory for all
    small = 2e-3 if half else 1e-5
    for name, stride in (("mass", 1), ("sampled", 5), ("sampled", 16), ("sampled", 100)):
        if name == "mass":
            mass = kernels.block_mass(q, k, dense_lse, slots, grid, scale=scale)
        else:
            mass = kernels.sampled_mass(q, k, slots, grid, stride=stride, scale=scale)
        wanted = torch.zeros(mass.shape, dtype=torch.float64)
        wanted[:, 1] = kc.mass64(q, k, grid, scale, stride)[:, -1]
        report(f"{name}-{stride}", shape, gap(mass, wanted), small)
    slots = torch.tensor([0, shape.heads - 1, 0]).repeat(shape.batch, 1)
    mixed = (5, 16, 16)
    mass = kernels.sampled_mass(q, k, slots, grid, stride=mixed, scale=scale)
    every = [kc.mass64(q, k, grid, scale, stride) for stride in mixed]
    wanted = torch.stack([each[:, slots[0, i]] for i, each in enumerate(every)], 1)
    report("sampled-mixed", shape, gap(mass, wanted), small)

    estimate = kernels.last_block(q, k, grid, scale=scale)
    vertical, slash = kc.last_block64(q, k, grid, scale)
    report("vertical", shape, gap(estimate.vertical, vertical), small)
    report("slash", shape, gap(estimate.slash, slash), small)


def run_misaligned() -> None:
    """Keys that no descriptor can hold: sm_90 takes the pointer configuration for them."""
    shape = SHAPES[2]
    q, k, v = kc.inputs(shape, "cpu")
    wide = torch.zeros(1, 1, shape.kv_len, 65, dtype=torch.float16)
    wide[..., :64] = k
    index = BlockIndex.full(1, shape.heads, shape.grid, "cpu")
    kernels = TritonKernels(capability=CAPABILITIES["sm90"], hopper=False)
    a, _ = kernels.attention(q, k, v, index, scale=shape.scale)
    b, _ = kernels.attention(q, wide[..., :64], v, index, scale=shape.scale)
    report("misaligned", shape, gap(a, b), 2e-3)


def main() -> None:
    arch = sys.argv[1]
    torch.set_num_threads(1)
    poison()
    for shape in SHAPES:
        # One table serves float32 on every architecture.
        if shape.dtype == "float16" or arch == "sm80":
            run(shape, CAPABILITIES[arch])
    if arch == "sm90":
        run_misaligned()


if __name__ == "__main__":
    main()
