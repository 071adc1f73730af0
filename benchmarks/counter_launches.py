"""Launches both attention kernels, once each a case, for `profile_counters.sh`; needs a GPU.

    ncu --profile-from-start off ... python benchmarks/counter_launches.py LAUNCHES.json

Masks, indices and compiled kernels are made before the profiled range of each shape, so that what
is profiled is one launch a case, in the order of the file.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch
from counter_table import FUNCTIONS, Launch

from sp_profile.bench.inputs import LayerShape, random_inputs
from sp_profile.bench.masks import MaskMaker
from sp_runtime.kernels.triton_backend import TritonKernels

DENSITIES = (1.0, 0.25, 0.05)


def shape(length: int, heads: int, kv_heads: int, head_dim: int) -> LayerShape:
    return LayerShape(
        length=length,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        block_size=128,
        dtype="bfloat16",
    )


SHAPES = (shape(32768, 32, 8, 128), shape(131072, 32, 8, 128), shape(32768, 9, 3, 64))


def profile(layer: LayerShape, device: torch.device) -> list[Launch]:
    """Every density by every kernel; the launches in their order."""
    backends = {"hopper": TritonKernels(), "portable": TritonKernels(hopper=False)}
    assert backends.keys() == FUNCTIONS.keys()
    x = random_inputs(layer, device, seed=0)
    if not backends["hopper"].takes_hopper(x.q, x.k, x.v, x.grid):
        raise SystemExit("the Hopper kernel does not run here: it needs compute capability 9.0")
    group = layer.heads // layer.kv_heads
    maker = MaskMaker(
        grid=x.grid, heads=layer.heads, group=group, cluster=group, seed=0, device=device
    )
    cases = [case for density in DENSITIES for case in maker.make("random", density)]
    indices = [backends["hopper"].build_index(case.mask, x.grid, case.dense) for case in cases]
    launches = []
    for warm in (True, False):
        torch.cuda.synchronize()
        torch.cuda.empty_cache()  # ncu saves what is allocated before it replays a kernel
        if not warm:
            torch.cuda.profiler.start()
        for case, index in zip(cases, indices, strict=True):
            for name, backend in backends.items():
                backend.attention(x.q, x.k, x.v, index, scale=x.scale)
                launches.append(
                    Launch(
                        kernel=name,
                        length=layer.length,
                        heads=layer.heads,
                        kv_heads=layer.kv_heads,
                        head_dim=layer.head_dim,
                        density=case.blocks() / layer.heads / x.grid.num_causal_blocks,
                        operations=case.blocks() * layer.operations_per_block,
                    )
                )
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()
    return launches[len(launches) // 2 :]


def main() -> None:
    device = torch.device("cuda")
    launches: list[Launch] = []
    with torch.inference_mode():
        for layer in SHAPES:
            launches += profile(layer, device)
    document = {
        "device": torch.cuda.get_device_name(device),
        "torch": torch.__version__,
        "launches": [dataclasses.asdict(launch) for launch in launches],
    }
    Path(sys.argv[1]).write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
