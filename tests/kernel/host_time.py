"""Host time of a sparse layer: what a small model waits for where the GPU needs less.

    python tests/kernel/host_time.py [--fake] [--new] [--profile METHOD]
        [--heads 9 --kv-heads 3 --dim 64]

Layers of 2048 tokens, so that a GPU never holds the host up; with --new each round has a length
that none before it had, from 1024 tokens on. With --fake no GPU is needed: Triton
finds its kernels, but the driver is left out, and torch's operators run on the CPU.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
import engine_cases  # noqa: E402
import fake_gpu  # noqa: E402

from sp_runtime.kernels.triton_backend import TritonKernels  # noqa: E402

METHODS = ("vertical_slash", "sampled", "plan")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fake", action="store_true", help="without a GPU")
    parser.add_argument("--new", action="store_true", help="every round takes another length")
    parser.add_argument("--profile", choices=METHODS, help="print where one method's time goes")
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=100)
    options = parser.parse_args()
    device = "cpu" if options.fake else "cuda"
    if options.fake:
        torch.set_num_threads(1)
        fake_gpu.install()
    lead = (engine_cases.LAYERS, 1)
    sizes = (options.heads, options.kv_heads, options.kv_heads)
    lengths = [1024 + 13 * n if options.new else 2048 for n in range(options.rounds + 1)]
    inputs = [
        torch.randn(*lead, heads, max(lengths), options.dim, device=device).to(torch.bfloat16)
        for heads in sizes
    ]
    for name in METHODS if options.profile is None else (options.profile,):
        kernels = TritonKernels(capability=(9, 0) if options.fake else None)
        engine = engine_cases.make_engine(name, heads=options.heads, block=128, kernels=kernels)
        every = [[each[..., :length, :] for each in inputs] for length in lengths]
        timed(engine, every.pop(), device)  # compiles
        times = [timed(engine, each, device) for each in every]
        times.sort()
        middle, best = (each * 1e6 / lead[0] for each in (times[len(times) // 2], times[0]))
        print(f"{name:<16}{middle:>8.0f} us a layer, at best {best:.0f}")
        if options.profile is not None:
            with cProfile.Profile() as profile:
                for each in every:
                    timed(engine, each, device)
            pstats.Stats(profile).sort_stats("tottime").print_stats(40)


def timed(engine: engine_cases.Engine, inputs: list[torch.Tensor], device: str) -> float:
    """Seconds until the host has started every layer of a forward."""
    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    engine_cases.forward(engine, *inputs)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
