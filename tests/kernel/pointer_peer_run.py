"""The pointer peer of the benchmarks under Triton's interpreter; prints one JSON line a shape.

TRITON_INTERPRET=1 python tests/kernel/pointer_peer_run.py
"""

from __future__ import annotations

import json

import torch

from sp_profile.bench.check import check_output, poison
from sp_profile.bench.inputs import LayerShape, random_inputs
from sp_profile.bench.masks import MaskMaker
from sp_profile.bench.peers import all_blocks
from sp_profile.bench.pointer_peer import grid_numbers, pointer_attention
from sp_runtime.block_index import BlockIndex
from sp_runtime.block_index_export import to_fa4_tensors


def main() -> None:
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    for length, heads, kv_heads in ((512, 2, 1), (450, 3, 3)):
        shape = LayerShape(
            length=length, heads=heads, kv_heads=kv_heads, head_dim=64, block_size=128,
            dtype="float16",
        )  # fmt: skip
        inputs = random_inputs(shape, cpu, seed=1)
        maker = MaskMaker(
            grid=shape.grid, heads=heads, group=heads // kv_heads, cluster=2, seed=2, device=cpu
        )
        (case,) = maker.make("random", 0.8)
        index = BlockIndex.from_mask(case.mask, shape.grid, case.dense)
        counts, blocks = all_blocks(to_fa4_tensors(index))
        poison(inputs.q)
        out = pointer_attention(inputs, counts, grid_numbers(blocks))
        check = check_output(out, inputs, case.mask, seed=3)
        line = {"error": check.error, "bound": check.bound, "finite": check.finite}
        print(json.dumps({"length": length, "blocks": int(counts.sum()), **line}), flush=True)


if __name__ == "__main__":
    main()
